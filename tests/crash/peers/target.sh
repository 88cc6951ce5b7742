#!/bin/sh
# The tool of every scenario, and the observer: what it does to the world is a line in `world/log`, written by itself.
# `world/stop-STEP` says that the agent is to be killed in here: before the effect, or after it and before the tool returns.
step=$1
echo "called $step" >>world/log
when=
[ -e "world/stop-$step" ] && read -r when <"world/stop-$step"
stop() { echo now >world/kill; read -r _ <world/gate; exit 1; } # until whoever kills has killed
[ "$when" = before ] && stop
echo "effect $step" >>world/log
[ "$when" = after ] && stop
echo "done $step"
