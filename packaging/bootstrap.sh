# SPDX-License-Identifier: GPL-3.0-or-later
# Sourced by ../demo, ../test, fetch-postfix and fetch-peers: what they need of a Debian or Ubuntu system.

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

# apt-get, one at a time: some of its commands fail where another apt is running.
apt_get() {
    flock --close /var/lib/apt apt-get -qq "$@"
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
    case $missing in
        *postgresql*) # for its programs: no database of the system's own, no server that starts
            mkdir -p /etc/postgresql-common/createcluster.d
            echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/gatepost.conf
            ;;
    esac
    apt_get update
    # The names are words of a list: no quotes.
    apt_get -o DPkg::Lock::Timeout=300 install --no-install-recommends --yes $missing >/dev/null </dev/null
}

# Unpack the named packages together into a folder of their own, ~/.cache/gatepost/NAME-VERSION, and install the shared
# libraries that they depend on: unpack NAME PACKAGE... VERSION is a single package's, or a checksum of several.
unpack() {
    name=$1
    shift
    cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/gatepost
    find_folder() {
        versions=$(LC_ALL=C apt-cache policy "$@" | sed -n 's/^ *Candidate: //p')
        [ $# -eq 1 ] || versions=$(echo "$* $versions" | cksum | cut -d ' ' -f 1)
        folder=$cache/$name-$versions
    }
    find_folder "$@"
    [ ! -d "$folder" ] || return 0
    apt_get update
    find_folder "$@"

    echo "$0: unpacking into $folder (not installed): $*" >&2
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/unpack.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    mkdir "$work/tree"
    (
        cd "$work"
        # Root fetches as root here: apt's own user cannot write into this folder, and apt would say so at length.
        apt_get -o APT::Sandbox::User=root download "$@"
        for package in *.deb; do
            dpkg-deb --extract "$package" tree
            dpkg-deb --field "$package" Depends >>depends
        done
    )
    # The shared libraries, without version bounds and alternatives; netbase has /etc/services.
    # Not what a page in a browser needs.
    need netbase $(tr ',' '\n' <"$work/depends" | sed -n '/^ *libjs-/d; s/^ *\(lib[^ |:]*\).*/\1/p' | sort -u)
    # Another run may have been faster.
    [ -d "$folder" ] || mv -T "$work/tree" "$folder" || [ -d "$folder" ]
    touch "$folder"
    rm -rf "$work"
}

# List the files of the source tree $top, each ended by a NUL: those that git knows or would add; without git, all.
source_files() {
    if [ -e "$top/.git" ]; then
        git -c "safe.directory=$top" -C "$top" ls-files -z --cached --others --exclude-standard
    else
        (cd "$top" && find . -path ./dist -prune -o -path './.venv*' -prune -o -name '*_cache*' -prune -o -type f -print0)
    fi
}
