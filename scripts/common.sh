# Sourced by the scripts beside it: where the tree is, how to speak, who stands behind sudo.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# ip, ss and setpriv may live in sbin, which an ordinary user's PATH often lacks.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() { say "$@" >&2; exit 1; }

am_root() { [ "$(id -u)" = 0 ]; }

# True if sudo works now, after asking for a password where there is a terminal to ask on. `sudo -v`
# comes first because it refuses a stranger to sudoers without a question and without a file in
# /run.
can_sudo() {
    local refusal
    command -v sudo >/dev/null || return 1
    if refusal=$(LC_ALL=C sudo -n -v 2>&1); then return 0; fi
    case $refusal in *"may not run sudo"*) return 1 ;; esac
    sudo -n true 2>/dev/null || { [ -t 0 ] && (: </dev/tty) 2>/dev/null && sudo -v; }
}

as_sudo_user() { setpriv --reuid "$SUDO_UID" --regid "$SUDO_GID" --init-groups "$@"; }

# True under `sudo make` in a tree that the user behind sudo can write: then what is built shall be
# theirs.  In a tree that only root can write, such as a clone made by `sudo git clone`, root
# builds.
behind_sudo() {
    am_root && [ "${SUDO_UID:-0}" != 0 ] && as_sudo_user test -w "$root" 2>/dev/null
}
