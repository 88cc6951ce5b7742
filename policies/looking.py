"""Programs of which some forms only look, told word by word: kubectl, tar, docker inspect, systemctl show, ps, mkdir.

Each answers with why it is not certain that these words only look; None where it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from perdure.policies.words import Word

# What kubectl may list and describe: no secrets, no tokens, no resource that only a cluster of its own knows.
_RESOURCES = frozenset(
    """all pods pod po deployments deployment deploy services service svc nodes node no replicasets replicaset rs daemonsets
    daemonset ds statefulsets statefulset sts jobs job cronjobs cronjob cj events event ev ingresses ingress ing namespaces
    namespace ns persistentvolumeclaims persistentvolumeclaim pvc persistentvolumes persistentvolume pv endpoints ep endpointslices
    endpointslice horizontalpodautoscalers horizontalpodautoscaler hpa networkpolicies networkpolicy netpol storageclasses
    storageclass sc poddisruptionbudgets poddisruptionbudget pdb configmaps configmap cm resourcequotas resourcequota quota
    limitranges limitrange limits replicationcontrollers replicationcontroller rc componentstatuses cs leases lease
    customresourcedefinitions customresourcedefinition crds crd apiservices apiservice serviceaccounts serviceaccount sa roles role
    rolebindings rolebinding clusterroles clusterrole clusterrolebindings clusterrolebinding""".split()  # noqa: SIM905 (one word a line would be a page)
)
_KUBECTL_FLAGS = re.compile(
    r"-[AwfhRp]+|--(?:all-namespaces|watch|watch-only|show-labels|show-kind|no-headers|ignore-not-found|follow|previous|timestamps"
    r"|all-containers|prefix|containers|client|short|help|show-events|show-managed-fields|server-print)(?:=(?:true|false))?"
)
_KUBECTL_VALUES = re.compile(
    r"-[nlLc]|--(?:namespace|selector|label-columns|field-selector|sort-by|container|tail|since|since-time|limit-bytes|chunk-size"
    r"|max-log-requests|request-timeout)"
)
_KUBECTL_OUTPUTS = re.compile(
    r"(?:wide|json|yaml|name|(?:jsonpath|jsonpath-as-json|custom-columns|go-template)=.*)", re.DOTALL
)
_KUBECTL_LOOKING = frozenset({"get", "describe", "logs", "top", "version"})


def kubectl(words: Sequence[Word]) -> str | None:
    """It asks the server for what it names: nothing that holds secrets, from no file, with no option that is not known here."""
    texts = [word.text for word in words]
    if any(text is None for text in texts):
        return "kubectl with what the shell expands"
    known = [text or "" for text in texts]
    if next((text for text in known if text in _KUBECTL_LOOKING), None) is None:
        return None  # other commands are for rules to name
    operands: list[str] = []
    at = 0
    while at < len(known):
        text = known[at]
        at += 1
        name, equals, value = text.partition("=")
        if not text.startswith("-"):
            operands.append(text)
        elif name in {"-o", "--output"} or (text.startswith("-o") and not text.startswith("--")):
            value = value if name in {"-o", "--output"} and equals else text[2:] if name != "--output" else ""
            if not value and at < len(known):
                value = known[at]
                at += 1
            if not _KUBECTL_OUTPUTS.fullmatch(value):
                return f"kubectl {text}"
        elif _KUBECTL_VALUES.fullmatch(name):
            at += 0 if equals else 1
        elif re.match(r"-[nlLc][^-]", text):
            pass
        elif not _KUBECTL_FLAGS.fullmatch(text):
            return f"kubectl {text}"
        elif re.fullmatch(r"-[A-Za-z]*f[A-Za-z]*", text) and operands[:1] != ["logs"]:
            return "kubectl -f reads what to look at"
    if operands[0] in {"get", "describe"}:
        named = operands[1:] if any("/" in each for each in operands[1:]) else operands[1:2]
        kinds = [kind.partition("/")[0].partition(".")[0] for each in named for kind in each.split(",")]
        if hidden := next((kind for kind in kinds if kind.lower() not in _RESOURCES), None):
            return f"kubectl {operands[0]} {hidden}: it may hold secrets"
    return None


_TAR_LISTS = re.compile(
    r"--(?:list|verbose|gzip|gunzip|bzip2|xz|lzma|zstd|lzip|wildcards|no-wildcards|anchored|no-anchored|ignore-case|full-time"
    r"|numeric-owner|utc|block-number|absolute-names|auto-compress|no-auto-compress|occurrence)|--(?:exclude|quoting-style)=.*",
    re.DOTALL,
)


def tar(words: Sequence[Word]) -> str | None:
    """It lists what is in an archive that lies here; every other form, and every option not known here, is something else."""
    lists = False
    archive: str | None = None
    at = 0
    while at < len(words):
        word, first = words[at], at == 0
        at += 1
        text = word.text
        if text is None:
            if word.may_be_option:
                return "tar may be given an option by what the shell expands"
            continue
        letters = text[1:] if re.fullmatch(r"-[A-Za-z]+", text) else text if first and text.isalpha() else ""
        if letters:
            if set(letters) - set("tvzjJaf") or letters.count("f") > 1 or ("f" in letters[:-1] and letters != text):
                return f"tar {text}"
            lists = lists or "t" in letters
            if "f" in letters:
                archive = words[at].text if at < len(words) else None
                if archive is None:
                    return "tar of an archive whose name is not certain"
                at += 1
        elif text == "--file":
            archive = words[at].text if at < len(words) else None
            at += 1
        elif text.startswith("--file="):
            archive = text.partition("=")[2]
        elif text == "--list":
            lists = True
        elif text in {"--version", "--help"} and len(words) == 1:
            return None
        elif text.startswith("-") and not _TAR_LISTS.fullmatch(text):
            return f"tar {text}"
    if not lists:
        return "tar that does more than list"
    if not archive or ":" in archive or archive.startswith("/dev/"):
        return "tar of an archive elsewhere"
    return None


_PLAIN_PART = re.compile(
    r"\s*(?:json\s+)?\.(?:State|NetworkSettings|Name|Id|Created|RestartCount|Image|Mounts|Driver|Platform|LogPath|Size\w*)[\w.]*\s*"
)


def docker(words: Sequence[Word]) -> str | None:
    """What `docker inspect` shows of a container includes its environment, where passwords lie, unless a format says otherwise."""
    named = [word.text for word in words if not word.may_be_option]
    if "top" in named[:1]:
        return ps([word for word in words if not word.may_be_option][2:])  # what stands behind the container is for ps
    if "inspect" not in named:
        return None
    formats: list[str | None] = []
    for at, word in enumerate(words):
        given = re.fullmatch(r"(?:-f|--format)(?:=(.*))?", word.text or "", re.DOTALL)
        if given:
            formats.append(given[1] if given[1] is not None else words[at + 1].text if at + 1 < len(words) else None)
    if not formats:
        return "docker inspect shows the environment, where passwords lie"
    for text in formats:
        parts = re.findall(r"\{\{(.*?)\}\}", text or "{{}}", re.DOTALL)
        if not all(_PLAIN_PART.fullmatch(part) for part in parts):
            return "docker inspect with a format that may show the environment"
    return None


def git(words: Sequence[Word]) -> str | None:
    """The placeholders `%G…` of a format have signatures checked, by the program that the repository's configuration names."""
    if any("%G" in (word.text if word.text is not None else word.prefix) for word in words):
        return "git with a format that runs what checks signatures"
    return None


_PS_VALUE = re.compile(
    r"-.*[oOkUpCtGgqnsN]|--(?:format|sort|user|User|group|Group|pid|ppid|sid|tty|quick-pid|cols|rows|lines)", re.DOTALL
)


def ps(words: Sequence[Word]) -> str | None:
    """The letter `e` without a dash adds the environment of each process, and so does the column `environ`."""
    is_value = False
    for word in words:
        if word.text is None:
            return "ps with what the shell expands"
        if "environ" in word.text:  # a column of -o, however it is spelled
            return "ps -o environ shows the environment of processes"
        letters = re.match(r"[A-Za-z]*", word.text)
        cluster = "" if is_value or letters is None else letters[0]
        # behind one of these letters stands its value, in the same word or the next
        flags, takes, value = re.fullmatch(r"([^oOkUpqtN]*)([oOkUpqtN]?)(.*)", cluster).groups()  # type: ignore[union-attr]  # fits everything
        if "e" in flags:
            return "ps e shows the environment of processes"
        is_value = not is_value and (
            bool(takes and not value and cluster == word.text) or _PS_VALUE.fullmatch(word.text) is not None
        )
    return None


def mkdir(words: Sequence[Word]) -> str | None:
    """A directory that everybody may write is more than a directory."""
    for at, word in enumerate(words):
        text = word.text
        given = re.fullmatch(r"-[pvZ]*m(.*)|--mode=?(.*)", text or "", re.DOTALL)
        if given:
            mode = given[1] or given[2] or (words[at + 1].text if at + 1 < len(words) else None)
            if not re.fullmatch(r"0?[0-7][0-5][0-5]", mode or ""):
                return "mkdir with a mode by which others may write"
    return None


_NO_SECRETS = re.compile(
    r"(?!\w*(?:Environment|Credential))[A-Za-z]\w*(?:,(?!\w*(?:Environment|Credential))[A-Za-z]\w*)*"
)


def systemctl(words: Sequence[Word]) -> str | None:
    """What `systemctl show` shows of a unit includes its environment, where passwords lie, unless properties are named."""
    texts = [word.text for word in words]
    if next((word.text for word in words if not word.may_be_option), "") != "show":
        return None
    named: list[str | None] = []
    for at, text in enumerate(texts):
        if text is None:
            return "systemctl show with what the shell expands"
        option, equals, value = text.partition("=") if text.startswith("--") else (text, "", "")
        short = re.fullmatch(r"-[A-Za-z]*?[pP](.*)", text, re.DOTALL)
        if short or (len(option) > 2 and "--property".startswith(option)):
            value = short[1] if short else value
            named.append(value if value or equals else texts[at + 1] if at + 1 < len(texts) else None)
    if not named:
        return "systemctl show shows the environment, where passwords lie; -p names what is wanted"
    if not all(_NO_SECRETS.fullmatch(each or "") for each in named):
        return "systemctl show of properties that may hold passwords"
    return None


FORMS: Mapping[str, Callable[[Sequence[Word]], str | None]] = {
    "kubectl": kubectl, "tar": tar, "docker": docker, "podman": docker, "ps": ps, "mkdir": mkdir,
    "systemctl": systemctl, "git": git,
}  # fmt: skip
