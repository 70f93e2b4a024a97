#!/bin/sh
# Try one server of others, also one that takes long to install: tests/servers/run.sh NAME [PYTEST-ARGUMENT]...
cd "$(dirname -- "$0")/../.." || exit 1
[ $# -gt 0 ] || { echo "usage: tests/servers/run.sh NAME [PYTEST-ARGUMENT]..." >&2; exit 2; }
MODELPIPES_TEST_SERVERS=$1
export MODELPIPES_TEST_SERVERS
shift
exec bin/test tests/servers -n 0 "$@"
