#!/bin/sh
# Puts a file into one comment of the pull request, which later pushes update; its first line is the marker that finds it.
#
# usage: comment-github.sh FILE
# Reads what GitHub sets (GITHUB_API_URL, GITHUB_REPOSITORY, GITHUB_EVENT_PATH, GITHUB_STEP_SUMMARY) and GITHUB_TOKEN. Where
# the token may not write, as in pull requests from forks, the file becomes part of the job's summary instead.
set -eu

file=${1:?'usage: comment-github.sh FILE'}
marker=$(head -n 1 "$file")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
number=$(jq -r '.pull_request.number // empty' "$GITHUB_EVENT_PATH")
comments=${GITHUB_API_URL:-https://api.github.com}/repos/$GITHUB_REPOSITORY/issues

to_summary() {
    echo "::notice title=wayleave plan::$1; the plan is in the summary of this job"
    tail -n +2 "$file" >>"$GITHUB_STEP_SUMMARY"
    exit 0
}

[ -n "$number" ] || to_summary 'this is no pull request'
[ -n "${GITHUB_TOKEN:-}" ] || to_summary 'there is no token to comment with'

# Not on a command line, which every process of the machine can read.
umask 077
printf 'Authorization: Bearer %s\nAccept: application/vnd.github+json\nX-GitHub-Api-Version: 2022-11-28\n' \
    "$GITHUB_TOKEN" >"$work/headers"

# Sets $status; the answer is in $work/answer.
request() {
    status=$(curl -sS --max-time 30 --retry 2 -o "$work/answer" -w '%{http_code}' -H "@$work/headers" -X "$@")
}

jq -Rs '{body: .}' "$file" >"$work/comment"
page=1
while :; do
    request GET "$comments/$number/comments?per_page=100&page=$page"
    case $status in
    200) ;;
    401 | 403 | 404) to_summary "the token may not read comments (HTTP $status)" ;;
    *)
        echo "::error title=wayleave plan::comments cannot be read: HTTP $status"
        exit 1
        ;;
    esac
    for id in $(jq -r --arg marker "$marker" '.[] | select(.body | startswith($marker)) | .id' "$work/answer"); do
        cp "$work/answer" "$work/page"
        request PATCH "$comments/comments/$id" --data-binary "@$work/comment"
        [ "$status" != 200 ] || exit 0
        # Somebody else's comment with our marker: not ours to change.
        cp "$work/page" "$work/answer"
    done
    [ "$(jq length "$work/answer")" -eq 100 ] || break
    page=$((page + 1))
done
request POST "$comments/$number/comments" --data-binary "@$work/comment"
case $status in
201) ;;
401 | 403 | 404) to_summary "the token may not comment (HTTP $status)" ;;
*)
    echo "::error title=wayleave plan::the comment cannot be made: HTTP $status"
    exit 1
    ;;
esac
