# Sourced by scripts/quickstart and scripts/test: makes .venv in the project's folder, once, and activates it.
# With NO_VENV=1 the environment that is active (conda, a container) is taken as it is, with llava-pose installed in it.
# usage: source scripts/environment.sh; make_environment EXTRAS

say() { printf '\n== %s\n' "$*"; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.10 python3; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10 or newer with venv was found; on Debian or Ubuntu: apt-get install python3 python3-venv" >&2
    return 2
}

make_environment() {
    local extras=$1 stamp python wanted
    if [ -n "${NO_VENV:-}" ]; then
        command -v llava-pose >/dev/null && return
        echo "error: NO_VENV is set and there is no llava-pose command; first: pip install -c constraints.txt -e '.[$extras]'" >&2
        return 2
    fi
    wanted="$extras $(cat pyproject.toml constraints.txt | cksum)"
    stamp=".venv/.installed-$extras" # one for each set, or quickstart and test would install over and over in turn
    # one that was stopped while it was made has a python and no pip
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        python=$(find_python) || return 2
        say "making .venv with $python"
        rm -rf .venv
        "$python" -m venv .venv || return 1
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        say "installing llava-pose[$extras] and what it needs (some minutes the first time)"
        python -m pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt \
            --editable ".[$extras]" | grep -v '^Requirement already' || return 1
        echo "$wanted" >"$stamp"
    fi
}
