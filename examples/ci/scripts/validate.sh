#!/bin/sh
# Checks policies and runs their tests; a fault is shown beside its line.
#
# usage: validate.sh github|gitlab|plain [POLICIES]
# With gitlab, the code quality report is written to gl-code-quality.json and the tests' results to wayleave-tests.xml.
# Exit codes are wayleave's: 0 all well, 3 an invalid policy or a failing test, 1 it could not be found out.
set -eu

kind=${1:?'usage: validate.sh github|gitlab|plain [POLICIES]'}
policies=${2:-policies}

# One workflow command for each failing test, as GitHub wants them escaped.
# shellcheck disable=SC2016 # the variable is jq's
annotations='
    def text: gsub("%"; "%25") | gsub("\r"; "%0D") | gsub("\n"; "%0A");
    def property: text | gsub(":"; "%3A") | gsub(","; "%2C");
    .cases[] | select(.result == "failed")
    | "::error file=\("\($policies)/\(.file)" | property),line=\(.line),title=policy test failed::"
      + ("\(.test): \(.case // .packet): expected \(.expected), got \(.got)" | text)'

code=0
case $kind in
github)
    wayleave validate "$policies" --format github || exit $?
    result=$(wayleave test "$policies" --format json) || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 3 ] || exit "$code"
    printf '%s\n' "$result" | jq -r --arg policies "${policies%/}" "$annotations"
    ;;
gitlab)
    wayleave validate "$policies" --format gitlab >gl-code-quality.json || code=$?
    if [ "$code" -ne 0 ]; then
        wayleave validate "$policies" || exit $?
        exit "$code"
    fi
    wayleave test "$policies" --format junit >wayleave-tests.xml || code=$?
    [ "$code" -eq 0 ] || wayleave test "$policies" || exit $?
    ;;
plain)
    wayleave validate "$policies" || exit $?
    wayleave test "$policies" || code=$?
    ;;
*)
    printf 'validate.sh: %s is none of github, gitlab, plain\n' "$kind" >&2
    exit 64
    ;;
esac
exit "$code"
