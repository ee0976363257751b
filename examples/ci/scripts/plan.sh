#!/bin/sh
# Writes what a change does to packets as markdown, ready to be a comment.
#
# usage: plan.sh FROM TO OUT [POLICIES]
# FROM and TO are commits; POLICIES is the folder of the repository that holds them. The first line is the marker by which
# the comment is found again. Exit codes are wayleave's: a plan with changes is no failure.
set -eu

[ $# -ge 3 ] || {
    echo 'usage: plan.sh FROM TO OUT [POLICIES]' >&2
    exit 64
}
from=$1 to=$2 out=$3 policies=${4:-policies}

# What a comment may have on GitHub, less room for the marker and for saying that something was cut.
bytes_max=65000

wayleave plan --from "$from" --to "$to" --subpath "$policies" --format markdown >"$out.plan"
{
    printf '<!-- wayleave-plan: %s -->\n' "$policies"
    if [ "$(wc -c <"$out.plan")" -gt "$bytes_max" ]; then
        # Cut between characters.
        head -c "$bytes_max" "$out.plan" | iconv -c -f UTF-8 -t UTF-8
        printf '\n```\n\n</details>\n\nCut: the whole plan is in the log of this job.\n'
        cat "$out.plan" >&2
    else
        cat "$out.plan"
    fi
} >"$out"
rm -f "$out.plan"
