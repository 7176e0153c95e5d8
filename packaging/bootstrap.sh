# SPDX-License-Identifier: GPL-3.0-or-later
# Sourced by ../demo, ../test and fetch-postfix: what they need of a Debian or Ubuntu system.

# Start this script again as root: Postfix only chroots its daemons, and drops privileges, as root.
become_root() {
    [ "$(id -u)" -ne 0 ] || return 0
    if ! command -v sudo >/dev/null; then
        echo "$0: a chrooted Postfix can only be run by root, and there is no sudo: run this as root" >&2
        exit 77
    fi
    echo "$0: asking sudo for root: a chrooted Postfix can only be run by root" >&2
    exec sudo ${PYTHON:+"PYTHON=$PYTHON"} ${CI:+"CI=$CI"} "$0" "$@"
}

# Install those of the named packages that are missing.
need() {
    missing=
    for package in "$@"; do
        case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
            *' installed') ;;
            *) missing="$missing $package" ;;
        esac
    done
    [ -n "$missing" ] || return 0
    echo "$0: installing with apt:$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    # The names are words of a list: no quotes.
    apt-get -qq -o DPkg::Lock::Timeout=300 install --no-install-recommends --yes $missing >/dev/null </dev/null
}
