#!/bin/sh
# Makes a small repository of policies whose history tells a story; the same commits every time.
#
# usage: make.sh DIRECTORY
set -eu

directory=${1:?'usage: make.sh DIRECTORY'}
mkdir "$directory"
cd "$directory"
# Nobody's own settings, so that commits have the same names everywhere.
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME='Mara Lindqvist' GIT_AUTHOR_EMAIL=mara@example.org
export GIT_COMMITTER_NAME="$GIT_AUTHOR_NAME" GIT_COMMITTER_EMAIL="$GIT_AUTHOR_EMAIL"
git init -q -b main .
mkdir policies
day=1

commit() {
    GIT_AUTHOR_DATE="2026-03-0${day}T09:00:00Z"
    GIT_COMMITTER_DATE="$GIT_AUTHOR_DATE"
    export GIT_AUTHOR_DATE GIT_COMMITTER_DATE
    git add -A
    git commit -q "$@"
    day=$((day + 1))
}

# 1. The first routes.
cat >policies/branch-offices.yaml <<'END'
apiVersion: wayleave/v1
kind: RoutePolicy
metadata: {name: branch-offices, owner: net-team}
spec:
  nextHops:
    - {name: edge-a, via: 192.0.2.1, port: uplink}
  routes:
    - {prefix: 10.20.0.0/16, nextHops: [{name: edge-a}]}
    - {prefix: 203.0.113.0/24, action: drop}
END
commit -m 'routes: the branch offices go by edge-a'

# 2. What must not break is written down.
cat >policies/reachability.yaml <<'END'
apiVersion: wayleave/v1
kind: PolicyTest
metadata: {name: reachability}
spec:
  cases:
    - name: the head office reaches a branch
      packet: {src: 198.18.0.1, dst: 10.20.3.4, protocol: tcp, dport: 443}
      expect: {verdict: forward}
    - name: the range that attacked us in January stays dropped
      packet: {src: 198.18.0.1, dst: 203.0.113.9}
      expect: {verdict: drop}
END
commit -m 'tests: branches are reached, and the attackers are not'

# 3. A second gateway takes a quarter of the traffic; this is the first release.
sed -i.bak \
    -e '/name: edge-a, via/a\
\    - {name: edge-b, via: 192.0.2.2, port: uplink}' \
    -e 's/\[{name: edge-a}\]/[{name: edge-a, weight: 3}, {name: edge-b, weight: 1}]/' policies/branch-offices.yaml
rm policies/branch-offices.yaml.bak
commit -m 'routes: a quarter of the branch traffic by edge-b'
git tag v1.0.0

# 4. A mistake: the branches' prefix is mistyped. The tests refuse it.
sed -i.bak 's/10\.20\.0\.0/10.200.0.0/' policies/branch-offices.yaml
rm policies/branch-offices.yaml.bak
commit -m 'routes: tidy up the branch offices'

# 5. It goes back.
sed -i.bak 's/10\.200\.0\.0/10.20.0.0/' policies/branch-offices.yaml
rm policies/branch-offices.yaml.bak
commit -m 'Revert "routes: tidy up the branch offices"' -m 'It took the branches off the net; the tests said so.'

# 6. A new site, with a test of its own.
sed -i.bak '/prefix: 10\.20\.0\.0/a\
\    - {prefix: 10.30.0.0/16, nextHops: [{name: edge-b}]}' policies/branch-offices.yaml
rm policies/branch-offices.yaml.bak
cat >>policies/reachability.yaml <<'END'
    - name: the new site is behind edge-b
      packet: {src: 198.18.0.1, dst: 10.30.0.1, protocol: udp, dport: 53}
      expect: {nextHop: [edge-b]}
END
commit -m 'routes: the site in Malmo'
git tag v1.1.0
