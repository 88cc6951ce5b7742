"""Adds one IPv4 address to the deny list, once: `block_ip.py ADDRESS FILE`. Blocking it again changes nothing."""

import ipaddress
import os
import sys


def main():
    address, path = str(ipaddress.IPv4Address(sys.argv[1])), sys.argv[2]
    with open(path, "a+", encoding="ascii") as file:
        file.seek(0)
        if address in file.read().split():
            print(f"{address} is already in {path}")
            return
        file.write(f"{address}\n")
        file.flush()
        os.fsync(file.fileno())
    print(f"{address} added to {path}")


if __name__ == "__main__":
    main()
