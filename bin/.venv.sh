# Sourced by the scripts here: find the checkout, have its .venv ready.
# shellcheck shell=sh
#
#   find_checkout "$0"   sets bin (this folder), root (the checkout) and name (as called)
#   need_venv EXTRA      makes $root/.venv, or brings it up to date; EXTRA is check,embedded,serve or dev
#
# .venv/.complete is written last, so that a half-made .venv is known by its absence. It holds the
# place (a .venv does not survive being moved), the sum of pyproject.toml and the extra installed;
# its time is that of pyproject.toml, which makes the usual look free of forks.

complain() { printf '%s: %s\n' "${0##*/}" "$1" >&2; }

find_checkout() {
    self=$1
    case $self in */*) ;; *) self=./$self ;; esac
    while :; do
        bin=${self%/*}
        name=${self##*/}
        [ -f "$bin/.venv.sh" ] && break
        link=$(readlink -- "$self") || { complain "cannot find the checkout that $1 belongs to"; exit 1; }
        case $link in /*) self=$link ;; *) self=$bin/$link ;; esac
    done
    root=$bin/..
}

venv_is_ready() {
    { IFS= read -r place && IFS= read -r sum && IFS= read -r extra; } 2>/dev/null <"$root/.venv/.complete" || return 1
    [ "$place" -ef "$root/.venv" ] && [ -x "$root/.venv/bin/python" ] || return 1
    [ "$extra" = dev ] || [ "$extra" = "$1" ] || return 2
    [ "$root/pyproject.toml" -nt "$root/.venv/.complete" ] || [ "$root/pyproject.toml" -ot "$root/.venv/.complete" ] || return 0
    [ "$(cksum <"$root/pyproject.toml")" = "$sum" ] || return 2
    touch -r "$root/pyproject.toml" "$root/.venv/.complete" 2>/dev/null || :  # a checkout that we cannot write
}

need_venv() {
    venv_is_ready "$1" || make_venv "$1"
}

find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    complain "needs Python 3.11 or newer; none of python3, python3.14 to python3.11 is"
    exit 1
}

install() { # EXTRA, which may be empty
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --only-binary xllamacpp --editable "$root${1:+[$1]}" >&2
}

make_venv() {
    root=$(cd "$root" && pwd -P) || exit 1
    find_python
    true 2>/dev/null >>"$root/.venv.lock" || { complain "cannot write in $root, where .venv belongs"; exit 1; }
    exec 9>>"$root/.venv.lock"
    # The lock belongs to the open file, so it stays ours when this python ends, and goes when we do.
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || {
        complain "another start is making $root/.venv; waiting for it ..."
        # Fifteen minutes: wheels over a slow line. The alarm ends this python.
        "$python" -c 'import fcntl, signal; signal.alarm(900); fcntl.flock(9, fcntl.LOCK_EX)' || {
            complain "$root/.venv.lock is still held: see who does with fuser, or lsof"
            exit 124
        }
    }
    state=0
    venv_is_ready "$1" || state=$?
    if [ $state -ne 0 ]; then
        wanted=$1
        if [ $state -eq 2 ]; then
            [ "$extra" != dev ] || wanted=dev
            complain "bringing $root/.venv up to date ..."
        else
            complain "making $root/.venv, once; this takes a minute ..."
            "$python" -c 'import venv, ensurepip' 2>/dev/null || {
                complain "this Python cannot make a venv: apt install python3-venv, then try again"
                exit 1
            }
            "$python" -m venv --clear "$root/.venv" >&2 || { complain "cannot make $root/.venv"; exit 1; }
        fi
        case $wanted in dev) lesser=check,serve,tools ;; *) lesser=check,serve ;; esac
        if ! install "$wanted"; then
            complain "that failed; trying without the embedded engine (xllamacpp) ..."
            install "$lesser" || { complain "cannot install into $root/.venv: see above; is there a network?"; exit 1; }
            complain "installed without the embedded engine: set LLAMA_SERVER or put llama-server on PATH"
        fi
        { printf '%s\n' "$root/.venv"; cksum <"$root/pyproject.toml"; printf '%s\n' "$wanted"; } >"$root/.venv/.complete.new" &&
            touch -r "$root/pyproject.toml" "$root/.venv/.complete.new" &&
            mv "$root/.venv/.complete.new" "$root/.venv/.complete" || exit 1
        complain "ready"
    fi
    exec 9>&-
}
