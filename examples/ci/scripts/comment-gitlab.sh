#!/bin/sh
# Puts a file into one note of the merge request, which later pushes update; its first line is the marker that finds it.
#
# usage: comment-gitlab.sh FILE
# Reads what GitLab sets (CI_API_V4_URL, CI_PROJECT_ID, CI_MERGE_REQUEST_IID) and WAYLEAVE_GITLAB_TOKEN, a project access
# token with the scope api: job tokens may not write notes. Without it, as in forks, the file is shown in the job's log.
set -eu

file=${1:?'usage: comment-gitlab.sh FILE'}
marker=$(head -n 1 "$file")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

to_log() {
    echo "$1; the plan:"
    tail -n +2 "$file"
    exit 0
}

[ -n "${CI_MERGE_REQUEST_IID:-}" ] || to_log 'This is no merge request'
[ -n "${WAYLEAVE_GITLAB_TOKEN:-}" ] || to_log 'There is no token to comment with'
notes=$CI_API_V4_URL/projects/$CI_PROJECT_ID/merge_requests/$CI_MERGE_REQUEST_IID/notes

# Not on a command line, which every process of the machine can read.
umask 077
printf 'PRIVATE-TOKEN: %s\nContent-Type: application/json\n' "$WAYLEAVE_GITLAB_TOKEN" >"$work/headers"

# Sets $status; the answer is in $work/answer.
request() {
    status=$(curl -sS --max-time 30 --retry 2 -o "$work/answer" -w '%{http_code}' -H "@$work/headers" -X "$@")
}

jq -Rs '{body: .}' "$file" >"$work/note"
page=1
while :; do
    request GET "$notes?per_page=100&page=$page"
    case $status in
    200) ;;
    401 | 403 | 404) to_log "The token may not read notes (HTTP $status)" ;;
    *)
        echo "Notes cannot be read: HTTP $status" >&2
        exit 1
        ;;
    esac
    for id in $(jq -r --arg marker "$marker" '.[] | select(.body | startswith($marker)) | .id' "$work/answer"); do
        cp "$work/answer" "$work/page"
        request PUT "$notes/$id" --data-binary "@$work/note"
        [ "$status" != 200 ] || exit 0
        cp "$work/page" "$work/answer"
    done
    [ "$(jq length "$work/answer")" -eq 100 ] || break
    page=$((page + 1))
done
request POST "$notes" --data-binary "@$work/note"
case $status in
201) ;;
401 | 403 | 404) to_log "The token may not write notes (HTTP $status)" ;;
*)
    echo "The note cannot be made: HTTP $status" >&2
    exit 1
    ;;
esac
