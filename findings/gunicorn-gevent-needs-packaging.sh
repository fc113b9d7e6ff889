#!/usr/bin/env bash
# gunicorn 27.0.1 beside gevent 26.9.0: the worker class "gevent" needs a third package.
#
# Expected (a guess from memory): `pip install gunicorn gevent` is all that `gunicorn -k gevent` needs, as
# gunicorn 20 to 23 installed `packaging` always.
# Seen: `packaging` is a dependency of the extra "gevent" alone. Without it gunicorn does not come to its
# own check of gevent's version, but ends with a traceback: No module named 'packaging'; and
# `gunicorn --check-config -k gevent` finds nothing wrong. With `pip install packaging` (or
# "gunicorn[gevent]") it finds the worker class.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check gunicorn==27.0.1 gevent==26.9.0

# What gunicorn itself calls for `-k gevent`, before it forks. (`--check-config` does not.)
load() { venv/bin/python -c 'from gunicorn.util import load_class; print(load_class("gevent"))' 2>&1; }

if load >before; then
    echo "changed: gunicorn took gevent without packaging"
    exit 1
fi
grep "No module named 'packaging'" before | tail -n 1
venv/bin/python -m pip install --quiet --disable-pip-version-check packaging==26.4
load
