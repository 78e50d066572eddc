# Sourced by quickstart.sh and test.sh: a virtual environment made from this checkout alone.
#
#   venv EXTRA...    sets $python to the interpreter of $VENV (.venv in the checkout by default),
#                    in which polytool is installed (editable) with these extras.

die() {
    echo "$*" >&2
    exit 1
}

# A Python that is new enough and can make environments; $PYTHON comes first.
find_python() {
    local name
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    die "No Python >= 3.11 with the venv module was found: install one (on Debian and Ubuntu:" \
        "apt install python3 python3-venv), or name it: PYTHON=/path/to/python3 bash $0"
}

venv() {
    VENV=${VENV:-.venv}
    python=$VENV/bin/python
    [ -x "$python" ] || python=$VENV/Scripts/python.exe # Windows
    if ! "$python" -c '' >/dev/null 2>&1; then
        local base
        base=$(find_python) || exit 1
        echo "== making the virtual environment $VENV with $("$base" --version)"
        "$base" -m venv --clear "$VENV" || die "$base could not make a virtual environment in $VENV"
        python=$VENV/bin/python
        [ -x "$python" ] || python=$VENV/Scripts/python.exe
    fi
    local extra stamp
    for extra in "$@"; do
        stamp=$VENV/polytool-$extra.stamp
        if ! cat setup.cfg pyproject.toml | cmp -s - "$stamp"; then
            echo "== installing polytool[$extra] and what it needs"
            "$python" -m pip install --quiet --disable-pip-version-check -e ".[$extra]" ||
                die "pip could not install what polytool needs (see above); check the network" \
                    "and pip's index, then run this again."
            cat setup.cfg pyproject.toml >"$stamp"
        fi
    done
}
