//! Policies from git: fetched over ssh from a real sshd, over https from `git http-backend`, and from this machine, by both
//! backends; and what servers and histories do that must not reach the rules.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use wayleave_tests::git::{Https, Proxy, Repository, Spoil, Sshd, Tamper};
use wayleave_tests::{Daemon, Namespace, Outcome, TestNode, Topology, require_root_and_bpf};

const BACKENDS: [&str; 2] = ["libgit2", "git"];
const TOKEN: &str = "t0ps3cret-token";
const SECOND: Duration = Duration::from_secs(1);
const BOUND: Duration = Duration::from_secs(20);

/// Sends the test's prefix to an upstream.
fn rules(upstream: char, remark: &str) -> String {
    let number = u32::from(upstream) - u32::from('a') + 1;
    format!(
        "# {remark}\napiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: probe}}\nspec:\n  nextHops:\n    - {{name: \
         up-{upstream}, via: 10.77.{number}.2, port: uplink-{upstream}}}\n  routes:\n    - {{prefix: 198.51.100.0/24, nextHops: \
         [{{name: up-{upstream}}}]}}\n"
    )
}

/// A repository with one commit of rules in `policies/`.
fn repository() -> (Repository, String) {
    let repository = Repository::new().unwrap();
    let id = repository.publish("policies/probe.yaml", &rules('a', "first"), "probe: to upstream a").unwrap();
    (repository, id)
}

/// A node that nothing is attached to, for commands that need no kernel.
struct Quiet {
    namespace: Namespace,
}

impl Quiet {
    fn new() -> Self {
        require_root_and_bpf().unwrap();
        Self { namespace: Namespace::new("git").unwrap() }
    }

    fn node(&self) -> TestNode<'_> {
        TestNode::new(&self.namespace, &[("uplink-a", "lo"), ("uplink-b", "lo2")]).unwrap()
    }
}

/// The source of a node: a URL with lines of its own.
fn source(url: &str, backend: &str, rest: &str) -> String {
    format!(
        "{{git: {{url: \"{url}\", ref: {{branch: main}}, subpath: policies, interval: 500ms, backend: {backend}{rest}}}}}"
    )
}

fn https_source(server: &Https, port: u16, backend: &str, token: &Path, rest: &str) -> String {
    let auth = format!(", auth: {{tokenFile: {}, caFile: {}}}{rest}", token.display(), server.file("ca.pem").display());
    source(&format!("https://127.0.0.1:{port}/server.git"), backend, &auth)
}

fn ssh_source(server: &Sshd, repository: &Repository, backend: &str, key: &str, hosts: &str, rest: &str) -> String {
    ssh_source_at(server, server.port, repository, backend, key, hosts, rest)
}

fn ssh_source_at(
    server: &Sshd,
    port: u16,
    repository: &Repository,
    backend: &str,
    key: &str,
    hosts: &str,
    rest: &str,
) -> String {
    let (key, hosts) = (server.file(key), server.file(hosts));
    let auth = format!(", auth: {{sshKeyFile: {}, knownHostsFile: {}}}{rest}", key.display(), hosts.display());
    source(&format!("ssh://root@127.0.0.1:{port}{}", repository.path().display()), backend, &auth)
}

/// `validate` of the node's source, which fetches it.
fn validate(node: &TestNode<'_>) -> Outcome {
    node.run(&["validate"]).unwrap()
}

fn assert_refused(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "no `{word}` in {}", outcome.stderr);
    }
    assert!(!outcome.stderr.contains(TOKEN) && !outcome.stdout.contains(TOKEN), "{outcome:?}");
}

fn wait_for(node: &TestNode<'_>, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
    let deadline = Instant::now() + BOUND;
    loop {
        // While the very first generation is put into the kernel, there is no status to have.
        let status = node.status().unwrap_or_default();
        if holds(&status) {
            return status;
        }
        if Instant::now() > deadline {
            let log = fs::read_to_string(node.scratch().join("log")).unwrap_or_default();
            panic!("not within {BOUND:?}: {what}\n{status:#}\n{log}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn both_backends_read_every_kind_of_server() {
    let quiet = Quiet::new();
    let (repository, id) = repository();
    let sshd = Sshd::start(&quiet.namespace, 2201).unwrap();
    let https = Https::start(&quiet.namespace, repository.folder(), Some(TOKEN)).unwrap();
    for backend in BACKENDS {
        let mut node = quiet.node();
        let token = node.scratch().join("token");
        fs::write(&token, format!("{TOKEN}\n")).unwrap();
        let sources = [
            source(&repository.path().display().to_string(), backend, ""),
            source(&format!("file://{}", repository.path().display()), backend, ""),
            ssh_source(&sshd, &repository, backend, "user", "known_hosts", ""),
            https_source(&https, https.port, backend, &token, ""),
        ];
        for source in sources {
            node.set_source(&source).unwrap();
            let outcome = validate(&node);
            assert_eq!(outcome.code, Some(0), "{source}: {outcome:?}");
            assert!(outcome.stderr.contains(&format!("valid: 1 route policy, 1 route; main@sha1:{id}")), "{outcome:?}");
        }
    }
}

#[test]
fn branches_tags_versions_and_commits_are_followed() {
    let quiet = Quiet::new();
    let (repository, first) = repository();
    let second = repository.publish("policies/probe.yaml", &rules('b', "second"), "probe: to upstream b").unwrap();
    for (tag, commit) in [("v1.0.0", &first), ("v1.10.0", &second), ("v1.9.0", &first), ("v2.0.0-rc.1", &first)] {
        repository.git(&["tag", "-a", "-m", tag, tag, commit]).unwrap();
        repository.push(tag).unwrap();
    }
    let url = repository.path().display().to_string();
    for backend in BACKENDS {
        let mut node = quiet.node();
        let mut check = |reference: &str, expected: Result<String, &str>| {
            let text = format!("{{git: {{url: {url}, ref: {{{reference}}}, subpath: policies, backend: {backend}}}}}");
            node.set_source(&text).unwrap();
            let outcome = validate(&node);
            match expected {
                Ok(revision) => {
                    assert!(outcome.stderr.trim_end().ends_with(&format!("; {revision}")), "{reference}: {outcome:?}");
                }
                Err(words) => assert_refused(&outcome, &[words]),
            }
        };
        check("branch: main", Ok(format!("main@sha1:{second}")));
        check("tag: v1.0.0", Ok(format!("v1.0.0@sha1:{first}")));
        check("semver: ^1", Ok(format!("v1.10.0@sha1:{second}")));
        check("semver: ~1.9", Ok(format!("v1.9.0@sha1:{first}")));
        check(&format!("commit: \"{first}\""), Ok(format!("sha1:{first}")));
        check("branch: gone", Err("has no branch `gone`"));
        check("tag: v9", Err("has no tag `v9`"));
        check("semver: ^3", Err("has no tag with a version in the range `^3`"));
        check(&format!("commit: {}", "ab".repeat(20)), Err("has no branch or tag with the commit abab"));
    }
}

#[test]
fn wrong_keys_hosts_tokens_and_certificates_are_refused_after_one_attempt() {
    let quiet = Quiet::new();
    let (repository, _) = repository();
    let sshd = Sshd::start(&quiet.namespace, 2202).unwrap();
    for backend in BACKENDS {
        let https = Https::start(&quiet.namespace, repository.folder(), Some(TOKEN)).unwrap();
        let mut node = quiet.node();
        let (good, bad, two) = (node.scratch().join("good"), node.scratch().join("bad"), node.scratch().join("two"));
        fs::write(&good, TOKEN).unwrap();
        fs::write(&bad, format!("not-{TOKEN}")).unwrap();
        fs::write(&two, format!("{TOKEN}\npath=x\n")).unwrap();
        let mut check = |source: String, words: &[&str]| {
            node.set_source(&source).unwrap();
            assert_refused(&validate(&node), words);
        };
        let before = sshd.log().unwrap().matches("Failed publickey").count();
        check(ssh_source(&sshd, &repository, backend, "stranger", "known_hosts", ""), &["Permission denied"]);
        // sshd does not log a key that is not among the authorized ones as failed unless it was the last attempt.
        let after = sshd.log().unwrap().matches("Failed publickey").count();
        assert!(after - before <= 1, "{}", sshd.log().unwrap());
        check(ssh_source(&sshd, &repository, backend, "user", "wrong_hosts", ""), &["Host key verification failed"]);
        check(ssh_source(&sshd, &repository, backend, "user", "gone", ""), &["the known hosts in", "cannot be read"]);
        check(ssh_source(&sshd, &repository, backend, "gone", "known_hosts", ""), &["the key in", "cannot be read"]);

        check(https_source(&https, https.port, backend, &bad, ""), &["refused the token in", "bad"]);
        let tried = https.requests().iter().filter(|line| line.ends_with(&format!("not-{TOKEN}"))).count();
        assert_eq!(tried, 1, "{:?}", https.requests());
        check(https_source(&https, https.port, backend, &two, ""), &["the credentials in", "are not one line of text"]);
        check(https_source(&https, https.port, backend, &node_path("/gone"), ""), &["cannot be read"]);
        let auth = format!(", auth: {{caFile: {}}}", https.file("ca.pem").display());
        let url = format!("https://127.0.0.1:{}/server.git", https.port);
        check(source(&url, backend, &auth), &["refused a reader without a token"]);
        let seen = https.requests().len();
        let auth = format!(", auth: {{caFile: {}, tokenFile: {}}}", https.file("other.pem").display(), good.display());
        check(source(&url, backend, &auth), &["the certificate of", "is not trusted"]);
        assert_eq!(https.requests().len(), seen, "a token was sent to a server that is not trusted");
        https.tamper(Tamper::Redirect);
        check(https_source(&https, https.port, backend, &good, ""), &["has moved", "redirects are not followed"]);
    }
}

fn node_path(text: &str) -> std::path::PathBuf {
    text.into()
}

#[test]
fn no_secret_is_in_an_argument_or_an_environment_while_a_fetch_runs() {
    let quiet = Quiet::new();
    let (repository, _) = repository();
    for backend in BACKENDS {
        let https = Https::start(&quiet.namespace, repository.folder(), Some(TOKEN)).unwrap();
        let proxy = Proxy::start(&quiet.namespace, https.port).unwrap();
        // Long enough to have shown the token, not long enough to have all.
        proxy.set(Spoil::Drip(3000));
        let mut node = quiet.node();
        let token = node.scratch().join("token");
        fs::write(&token, TOKEN).unwrap();
        node.set_source(&https_source(&https, proxy.port, backend, &token, ", timeout: 2s")).unwrap();
        let said = node.scratch().join("said");
        let mut child = node.command(&["validate"]).unwrap().stderr(fs::File::create(&said).unwrap()).spawn().unwrap();
        let mut seen = 0;
        while child.try_wait().unwrap().is_none() {
            for process in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
                for file in ["cmdline", "environ"] {
                    let bytes = fs::read(process.path().join(file)).unwrap_or_default();
                    let text = String::from_utf8_lossy(&bytes);
                    seen += usize::from(text.contains("git-fetch"));
                    assert!(!text.contains(TOKEN), "{backend}: {file} of {:?}: {text}", process.path());
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        assert!(seen > 0, "{backend}: no fetch was seen at all: {}", fs::read_to_string(&said).unwrap());
    }
}

#[test]
fn cut_stalled_and_dripping_connections_end_within_the_time_limit() {
    let quiet = Quiet::new();
    let (repository, _) = repository();
    // Some hundred kilobytes that do not get smaller, so that there is a middle of the pack.
    let mut noise = vec![0; 200 << 10];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    fs::write(repository.folder().join("work/noise"), noise).unwrap();
    let id = repository.commit("noise").unwrap();
    repository.push("main").unwrap();
    let sshd = Sshd::start(&quiet.namespace, 2203).unwrap();
    let https = Https::start(&quiet.namespace, repository.folder(), Some(TOKEN)).unwrap();
    for backend in BACKENDS {
        for over_ssh in [false, true] {
            let proxy = Proxy::start(&quiet.namespace, if over_ssh { sshd.port } else { https.port }).unwrap();
            let mut node = quiet.node();
            let token = node.scratch().join("token");
            fs::write(&token, TOKEN).unwrap();
            let limits = ", timeout: 2s, connectTimeout: 1s";
            if over_ssh {
                let key = fs::read_to_string(sshd.file("host.pub")).unwrap();
                fs::write(sshd.file("proxy_hosts"), format!("[127.0.0.1]:{} {key}", proxy.port)).unwrap();
                let text = ssh_source_at(&sshd, proxy.port, &repository, backend, "user", "proxy_hosts", limits);
                node.set_source(&text).unwrap();
            } else {
                node.set_source(&https_source(&https, proxy.port, backend, &token, limits)).unwrap();
            }
            for spoil in [
                Spoil::Cut(0),
                Spoil::Cut(600),
                Spoil::Cut(20_000),
                Spoil::Stall(0),
                Spoil::Stall(20_000),
                Spoil::Drip(600),
                Spoil::Drip(20_000),
            ] {
                proxy.set(spoil);
                let begun = Instant::now();
                let outcome = validate(&node);
                assert_refused(&outcome, &["the fetch failed"]);
                assert!(begun.elapsed() < 4 * SECOND, "{backend} {spoil:?}: {:?}", begun.elapsed());
                if !matches!(spoil, Spoil::Cut(_)) {
                    let said = ["within", "timed out", "did not answer"];
                    assert!(said.iter().any(|words| outcome.stderr.contains(words)), "{spoil:?}: {}", outcome.stderr);
                }
            }
            proxy.set(Spoil::Nothing);
            let outcome = validate(&node);
            assert!(outcome.stderr.contains(&format!("main@sha1:{id}")), "{backend}: {outcome:?}");
        }
    }
}

#[test]
fn a_pack_with_a_wrong_bit_is_refused_and_the_next_good_one_taken() {
    let quiet = Quiet::new();
    let (repository, id) = repository();
    for backend in BACKENDS {
        let https = Https::start(&quiet.namespace, repository.folder(), Some(TOKEN)).unwrap();
        let mut node = quiet.node();
        let token = node.scratch().join("token");
        fs::write(&token, TOKEN).unwrap();
        node.set_source(&https_source(&https, https.port, backend, &token, "")).unwrap();
        https.tamper(Tamper::Flip);
        assert_refused(&validate(&node), &["the fetch failed"]);
        https.tamper(Tamper::Nothing);
        let outcome = validate(&node);
        assert!(outcome.stderr.contains(&format!("main@sha1:{id}")), "{backend}: {outcome:?}");
    }
}

#[test]
fn a_huge_blob_costs_no_memory_and_a_huge_transfer_is_cut_off() {
    let quiet = Quiet::new();
    let (repository, _) = repository();
    // A gigabyte that takes one megabyte on the wire.
    let work = repository.folder().join("work/policies/huge.yaml");
    fs::File::create(&work).unwrap().set_len(1 << 30).unwrap();
    repository.commit("huge").unwrap();
    repository.push("main").unwrap();
    let https = Https::start(&quiet.namespace, repository.folder(), Some(TOKEN)).unwrap();
    for backend in BACKENDS {
        let mut node = quiet.node();
        let token = node.scratch().join("token");
        fs::write(&token, TOKEN).unwrap();
        node.set_source(&https_source(&https, https.port, backend, &token, "")).unwrap();
        let outcome = validate(&node);
        assert_eq!(outcome.code, Some(3), "{backend}: {outcome:?}");
        assert!(outcome.stdout.contains("WL0002") && outcome.stdout.contains("1073741824 bytes"), "{outcome:?}");
        node.set_source(&https_source(&https, https.port, backend, &token, ", transferLimit: 100KiB")).unwrap();
        fs::remove_dir_all(node.state()).unwrap();
        assert_refused(&validate(&node), &["sends more than 102400 bytes", "transferLimit"]);
    }
    let peak = peak_of_children_kib();
    assert!(peak < 400 << 10, "a child took {peak} KiB");
}

/// Resident memory of the largest process that this one has waited for.
fn peak_of_children_kib() -> i64 {
    // SAFETY: all zeros is a valid rusage, and the call writes into that one.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage), 0);
        usage.ru_maxrss
    }
}

#[test]
fn links_and_submodules_are_faults_with_their_path() {
    let quiet = Quiet::new();
    let (repository, _) = repository();
    std::os::unix::fs::symlink("/etc/passwd", repository.folder().join("work/policies/link.yaml")).unwrap();
    let commit = "1234567890123456789012345678901234567890";
    repository.commit("a link").unwrap();
    repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},policies/partners")]).unwrap();
    repository.git(&["commit", "--quiet", "-m", "a submodule"]).unwrap();
    repository.push("main").unwrap();
    for backend in BACKENDS {
        let mut node = quiet.node();
        node.set_source(&source(&repository.path().display().to_string(), backend, "")).unwrap();
        let outcome = validate(&node);
        assert_eq!(outcome.code, Some(3), "{outcome:?}");
        for word in ["WL0001", "policies/link.yaml", "/etc/passwd", "WL0007", "policies/partners", commit] {
            assert!(outcome.stdout.contains(word), "{backend}: no {word} in {}", outcome.stdout);
        }
    }
}

#[test]
fn commands_read_a_local_repository_at_a_revision() {
    let quiet = Quiet::new();
    let (repository, first) = repository();
    let second = repository.publish("policies/probe.yaml", &rules('b', "second"), "probe: to upstream b").unwrap();
    let node = quiet.node();
    let bare = repository.path().display().to_string();
    let folder = repository.folder().join("work/policies").display().to_string();
    let check = |arguments: &[&str], expected: &str| {
        let outcome = node.run(&[&["validate"], arguments].concat()).unwrap();
        assert!(outcome.stderr.contains(expected), "{arguments:?}: {outcome:?}");
    };
    check(&[&bare, "--ref", "main", "--subpath", "policies"], &format!("; main@sha1:{second}"));
    check(&[&bare, "--ref", "HEAD~1", "--subpath", "policies"], &format!("; sha1:{first}"));
    check(&[&folder, "--ref", "main~1"], &format!("; sha1:{first}"));
    check(&[&format!("file://{bare}"), "--ref", "main", "--subpath", "policies"], &format!("; main@sha1:{second}"));
    check(&[&bare, "--ref", "gone"], "`gone` names nothing in the repository");
    check(&[&format!("file://{bare}")], "say with --ref");
    check(&["https://ada:s3cret@127.0.0.1/x", "--ref", "main"], "carries credentials");
    let outcome = node.run(&[
        "trace",
        "--against",
        &bare,
        "--ref",
        "main",
        "--subpath",
        "policies",
        "--src",
        "192.0.2.1",
        "--dst",
        "198.51.100.9",
    ]);
    let outcome = outcome.unwrap();
    assert!(outcome.stdout.contains("up-b"), "{outcome:?}");
    std::os::unix::fs::chown(repository.path(), Some(12345), Some(12345)).unwrap();
    let real = repository.path().canonicalize().unwrap().display().to_string();
    check(&[&bare, "--ref", "main"], "belongs to another user, and git does not read those unasked");
    check(&[&bare, "--ref", "main"], &format!("`git config --global --add safe.directory {real}`"));
    let config = node.config();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("{directory: policies}", "{git: {url: \"https://ada:s3cret@h/x\", ref: {branch: a}}}"),
    )
    .unwrap();
    let outcome = validate(&node);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stdout.contains("carries credentials"), "{outcome:?}");
    assert!(!outcome.stdout.contains("s3cret") && !outcome.stderr.contains("s3cret"), "{outcome:?}");
}

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

#[test]
fn a_push_goes_live_and_whatever_a_server_does_the_rules_stay() {
    let lab = lab();
    for backend in BACKENDS {
        let (repository, first) = repository();
        let https = Https::start(&lab.router, repository.folder(), Some(TOKEN)).unwrap();
        let proxy = Proxy::start(&lab.router, https.port).unwrap();
        let mut node = TestNode::router(&lab).unwrap();
        let token = node.scratch().join("token");
        fs::write(&token, TOKEN).unwrap();
        node.set_source(&https_source(&https, proxy.port, backend, &token, ", timeout: 3s")).unwrap();
        let daemon = Daemon::start(&node);
        let at = |id: &str| format!("main@sha1:{id}");
        let status = wait_for(&node, "the first commit", |s| s["revision"] == at(&first));
        let generation = status["generation"].clone();

        let second = repository.publish("policies/probe.yaml", &rules('b', "second"), "probe: to upstream b").unwrap();
        let status = wait_for(&node, "the second commit", |s| s["revision"] == at(&second));
        assert_eq!(status["source"]["state"], "ready", "{status:#}");
        assert_eq!(status["source"]["commit"]["subject"], "probe: to upstream b", "{status:#}");
        assert!(status["generation"].as_u64() > generation.as_u64());
        let generation = status["generation"].clone();

        // Another commit, the same rules: nothing is published.
        let third = repository.publish("README.md", "for people", "readme").unwrap();
        let status = wait_for(&node, "the third commit", |s| s["sync"]["last_attempted"]["revision"] == at(&third));
        assert_eq!(status["generation"], generation, "{status:#}");
        assert_eq!(status["sync"]["state"], "in-sync");

        // Credentials are read at each fetch.
        fs::write(&token, "another").unwrap();
        let status = wait_for(&node, "a failing source", |s| s["source"]["state"] == "stale");
        assert_eq!(status["source"]["reason"], "credentials", "{status:#}");
        assert_eq!((&status["generation"], &status["sync"]["state"]), (&generation, &"in-sync".into()));
        assert!(!status.to_string().contains(TOKEN));
        fs::write(&token, TOKEN).unwrap();
        wait_for(&node, "a source that answers", |s| s["source"]["state"] == "ready");

        for (spoil, reason) in [(Spoil::Cut(0), "server"), (Spoil::Stall(0), "timeout")] {
            proxy.set(spoil);
            let status = wait_for(&node, "a failing source", |s| s["source"]["reason"] == reason);
            assert_eq!(status["generation"], generation, "{status:#}");
        }
        proxy.set(Spoil::Nothing);

        // The whole source empty, the folder gone, the branch gone: never "remove every rule".
        repository.git(&["rm", "-r", "--quiet", "policies"]).unwrap();
        let empty = repository.commit("remove all").unwrap();
        repository.push("main").unwrap();
        let status = wait_for(&node, "a lost folder", |s| {
            s["source"]["message"].as_str().is_some_and(|e| e.contains(&format!("{empty} has no directory `policies`")))
        });
        assert_eq!(status["generation"], generation, "{status:#}");
        repository.git(&["push", "--quiet", "origin", "+main:other"]).unwrap();
        repository.git(&["--git-dir", "../server.git", "update-ref", "-d", "refs/heads/main"]).unwrap();
        let status = wait_for(&node, "a lost branch", |s| s["source"]["reason"] == "not-found");
        assert_eq!(status["generation"], generation, "{status:#}");

        let log = daemon.log();
        assert!(!log.contains(TOKEN), "{log}");
        assert_eq!(daemon.stop(Signal::TERM), Some(0));
        node.succeed(&["detach", "--auto-approve"]).unwrap();
    }
}

#[test]
fn a_rewritten_history_is_allowed_warned_of_or_refused() {
    let lab = lab();
    for backend in BACKENDS {
        for (mode, taken) in [("allow", true), ("warn", true), ("refuse", false)] {
            let (repository, first) = repository();
            let mut node = TestNode::router(&lab).unwrap();
            let url = repository.path().display().to_string();
            node.set_source(&source(&url, backend, &format!(", forcePush: {mode}"))).unwrap();
            let daemon = Daemon::start(&node);
            let at = |id: &str| format!("main@sha1:{id}");
            wait_for(&node, "the first commit", |s| s["revision"] == at(&first));
            repository.write("policies/probe.yaml", &rules('b', "rewritten")).unwrap();
            repository.git(&["commit", "--quiet", "--amend", "-a", "-m", "rewritten"]).unwrap();
            let new = repository.head().unwrap();
            repository.push("+main").unwrap();
            let status = if taken {
                wait_for(&node, "the rewritten commit", |s| s["revision"] == at(&new))
            } else {
                let status = wait_for(&node, "a refusal", |s| s["source"]["state"] == "refused");
                assert_eq!(status["revision"], at(&first));
                status
            };
            let words = format!("{new} does not contain {first}");
            let told = |key: &str| status["source"][key].as_str().is_some_and(|text| text.contains(&words));
            assert_eq!((told("warning"), told("message")), (mode == "warn", mode == "refuse"), "{mode}: {status:#}");
            // The old tip has a name, so nothing removes it.
            let mirror = fs::read_dir(node.state().join("git")).unwrap().filter_map(Result::ok).map(|e| e.path());
            let mirror = mirror.into_iter().find(|path| path.extension().is_some_and(|e| e == "git")).unwrap();
            let kept = repository.git(&[
                "--git-dir",
                mirror.to_str().unwrap(),
                "rev-parse",
                &format!("refs/wayleave/old/{first}"),
            ]);
            assert_eq!(kept.unwrap().trim(), first);
            assert_eq!(daemon.stop(Signal::TERM), Some(0));
            node.succeed(&["detach", "--auto-approve"]).unwrap();
        }
    }
}

#[test]
fn a_tag_that_moves_is_a_rewritten_history_and_a_higher_version_is_not() {
    let lab = lab();
    let (repository, first) = repository();
    repository.git(&["tag", "v1.0.0"]).unwrap();
    repository.push("v1.0.0").unwrap();
    let mut node = TestNode::router(&lab).unwrap();
    let url = repository.path().display().to_string();
    let text =
        format!("{{git: {{url: {url}, ref: {{semver: ^1}}, subpath: policies, interval: 300ms, forcePush: refuse}}}}");
    node.set_source(&text).unwrap();
    let daemon = Daemon::start(&node);
    wait_for(&node, "v1.0.0", |s| s["revision"] == format!("v1.0.0@sha1:{first}"));
    let second = repository.publish("policies/probe.yaml", &rules('b', "second"), "second").unwrap();
    repository.git(&["tag", "-f", "v1.0.0"]).unwrap();
    repository.push("+v1.0.0").unwrap();
    let status = wait_for(&node, "a refusal", |s| s["source"]["state"] == "refused");
    assert_eq!(status["revision"], format!("v1.0.0@sha1:{first}"));
    repository.git(&["tag", "v1.1.0"]).unwrap();
    repository.push("v1.1.0").unwrap();
    let status = wait_for(&node, "v1.1.0", |s| s["revision"] == format!("v1.1.0@sha1:{second}"));
    assert_eq!(status["source"]["state"], "ready", "{status:#}");
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}

#[test]
fn a_damaged_mirror_is_fetched_anew_and_the_rules_stay() {
    let lab = lab();
    for backend in BACKENDS {
        let (repository, first) = repository();
        let mut node = TestNode::router(&lab).unwrap();
        node.set_source(&source(&repository.path().display().to_string(), backend, "")).unwrap();
        let daemon = Daemon::start(&node);
        let status = wait_for(&node, "the first commit", |s| s["revision"] == format!("main@sha1:{first}"));
        let mirror = fs::read_dir(node.state().join("git")).unwrap().filter_map(Result::ok).map(|e| e.path());
        let mirror = mirror.into_iter().find(|path| path.extension().is_some_and(|e| e == "git")).unwrap();
        for wreck in ["objects", "HEAD"] {
            let path = mirror.join(wreck);
            if path.is_dir() {
                fs::remove_dir_all(&path).unwrap();
            } else {
                fs::write(&path, "\0\0\0").unwrap();
            }
            daemon.signal(Signal::HUP);
            thread::sleep(SECOND);
            let now = wait_for(&node, "a source that is whole again", |s| {
                s["source"]["state"] == "ready" && s["sync"]["state"] == "in-sync" && mirror.join("objects").is_dir()
            });
            assert_eq!(now["generation"], status["generation"], "{now:#}");
        }
        let second = repository.publish("policies/probe.yaml", &rules('b', "second"), "second").unwrap();
        wait_for(&node, "the second commit", |s| s["revision"] == format!("main@sha1:{second}"));
        assert_eq!(daemon.stop(Signal::TERM), Some(0));
        node.succeed(&["detach", "--auto-approve"]).unwrap();
    }
}

/// A repository whose commits are signed by `signer`, made by git itself.
struct Signed {
    repository: Repository,
    folder: tempfile::TempDir,
}

impl Signed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (key, kind, bits) in [
            ("ada", "ed25519", "256"),
            ("bob", "rsa", "3072"),
            ("eve", "ed25519", "256"),
            ("joe", "ecdsa", "256"),
            ("kim", "ecdsa", "384"),
            ("lee", "ecdsa", "521"),
        ] {
            let mut keygen = std::process::Command::new("ssh-keygen");
            keygen.args(["-q", "-t", kind, "-b", bits, "-N", "", "-C", key, "-f"]).arg(folder.path().join(key));
            assert!(keygen.status().unwrap().success());
        }
        Self { repository: Repository::new().unwrap(), folder }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The allowed signers: lines of a principal, options, and the name of a key.
    fn allow(&self, lines: &[(&str, &str, &str)]) {
        let line = |(who, options, key): &(&str, &str, &str)| {
            format!("{who} {options} {}", fs::read_to_string(self.file(&format!("{key}.pub"))).unwrap())
        };
        fs::write(self.file("signers"), lines.iter().map(line).collect::<String>()).unwrap();
    }

    /// Runs git with `key` as the key that signs.
    fn git(&self, key: &str, arguments: &[&str]) -> String {
        let key = format!("user.signingKey={}", self.file(key));
        self.repository.git(&[&["-c", "gpg.format=ssh", "-c", &key], arguments].concat()).unwrap()
    }

    /// Commits rules to upstream `upstream`, signed by `key`, and pushes them.
    fn publish(&self, upstream: char, remark: &str, key: Option<&str>) -> String {
        self.repository.write("policies/probe.yaml", &rules(upstream, remark)).unwrap();
        self.repository.git(&["add", "--all"]).unwrap();
        match key {
            Some(key) => drop(self.git(key, &["commit", "--quiet", "-S", "-m", remark])),
            None => drop(self.repository.git(&["commit", "--quiet", "-m", remark]).unwrap()),
        }
        self.repository.push("+main").unwrap();
        self.repository.head().unwrap()
    }

    fn source(&self, reference: &str, verify: &str) -> String {
        format!(
            "{{git: {{url: {}, ref: {{{reference}}}, subpath: policies, interval: 300ms, forcePush: allow, verify: {{allowedSigners: \
             {}, {verify}}}}}}}",
            self.repository.path().display(),
            self.file("signers")
        )
    }
}

#[test]
fn only_commits_signed_by_an_allowed_signer_are_read() {
    let quiet = Quiet::new();
    let signed = Signed::new();
    signed.allow(&[("ada@example.org", "", "ada"), ("bob@example.org", "namespaces=\"git\"", "bob")]);
    let mut node = quiet.node();
    let check = |node: &TestNode<'_>, expected: Result<&str, &[&str]>| {
        let outcome = validate(node);
        match expected {
            Ok(id) => assert!(outcome.stderr.contains(&format!("; main@sha1:{id}")), "{outcome:?}"),
            Err(words) => assert_refused(&outcome, words),
        }
    };
    node.set_source(&signed.source("branch: main", "mode: head")).unwrap();
    let id = signed.publish('a', "by ada", Some("ada"));
    check(&node, Ok(&id));
    let id = signed.publish('b', "by bob with RSA", Some("bob"));
    check(&node, Ok(&id));
    signed.allow(&["ada", "joe", "kim", "lee"].map(|who| (who, "", who)));
    for (upstream, key) in [('a', "joe"), ('b', "kim"), ('a', "joe"), ('b', "kim")] {
        let id = signed.publish(upstream, "with ECDSA", Some(key));
        check(&node, Ok(&id));
    }
    // Keys of types that are not checked do not spoil the list; their signatures are refused by name.
    let id = signed.publish('a', "with ECDSA over P-521", Some("lee"));
    check(&node, Err(&[&id, "is signed by lee with a key of the type ecdsa-sha2-nistp521"]));
    for (armor, name) in [("PGP SIGNATURE", "OpenPGP"), ("SIGNED MESSAGE", "X.509")] {
        let object = signed.repository.git(&["cat-file", "commit", &id]).unwrap().replace("SSH SIGNATURE", armor);
        fs::write(signed.file("object"), object).unwrap();
        let foreign = signed.repository.git(&["hash-object", "-t", "commit", "-w", &signed.file("object")]).unwrap();
        signed.repository.git(&["reset", "--quiet", "--hard", foreign.trim()]).unwrap();
        signed.repository.push("+main").unwrap();
        check(&node, Err(&[foreign.trim(), &format!("is signed with {name}"), "gpg.format ssh"]));
    }
    let id = signed.publish('a', "by eve", Some("eve"));
    check(&node, Err(&[&id, "is signed by the key SHA256:", "which the allowed signers do not have"]));
    let id = signed.publish('b', "by nobody", None);
    check(&node, Err(&[&id, "is not signed"]));

    signed.allow(&[
        ("ada@example.org", "valid-before=\"20200101Z\"", "ada"),
        ("bob@example.org", "namespaces=\"file\"", "bob"),
    ]);
    let id = signed.publish('a', "by ada, too late", Some("ada"));
    check(&node, Err(&[&id, "ada@example.org, whose key is not valid any more"]));
    let id = signed.publish('b', "by bob, who may sign files", Some("bob"));
    check(&node, Err(&[&id, "which the allowed signers do not have"]));
    signed.allow(&[("ada@example.org", "valid-after=\"20990101Z\"", "ada")]);
    let id = signed.publish('a', "by ada, too early", Some("ada"));
    check(&node, Err(&[&id, "whose key is not valid yet"]));

    // The signature of one commit on the content of another.
    signed.allow(&[("ada@example.org", "", "ada")]);
    let id = signed.publish('b', "honest", Some("ada"));
    check(&node, Ok(&id));
    let object = signed.repository.git(&["cat-file", "commit", "HEAD"]).unwrap().replace("\nhonest", "\ntampered");
    fs::write(signed.file("object"), object).unwrap();
    let forged = signed.repository.git(&["hash-object", "-t", "commit", "-w", &signed.file("object")]).unwrap();
    signed.repository.git(&["reset", "--quiet", "--hard", forged.trim()]).unwrap();
    signed.repository.push("+main").unwrap();
    check(&node, Err(&[forged.trim(), "has been tampered with", "ada@example.org"]));

    fs::write(signed.file("signers"), "ada@example.org cert-authority ssh-ed25519 AAAA\n").unwrap();
    check(&node, Err(&["line 1 of the allowed signers in"]));
    fs::remove_file(signed.file("signers")).unwrap();
    check(&node, Err(&["the allowed signers in", "cannot be read"]));
}

#[test]
fn a_tag_must_be_signed_under_its_own_name() {
    let quiet = Quiet::new();
    let signed = Signed::new();
    signed.allow(&[("ada@example.org", "", "ada")]);
    let id = signed.publish('a', "release", None);
    let mut node = quiet.node();
    signed.git("ada", &["tag", "-s", "-m", "one", "v1.0.0"]);
    signed.repository.git(&["tag", "-a", "-m", "unsigned", "v1.1.0"]).unwrap();
    signed.repository.git(&["tag", "v1.2.0"]).unwrap();
    signed.git("eve", &["tag", "-s", "-m", "by eve", "v1.3.0"]);
    // The same object under a higher version.
    signed.repository.git(&["update-ref", "refs/tags/v2.0.0", "v1.0.0"]).unwrap();
    signed.repository.git(&["push", "--quiet", "origin", "--tags"]).unwrap();
    let mut check = |reference: &str, expected: Result<&str, &[&str]>| {
        node.set_source(&signed.source(reference, "mode: tag")).unwrap();
        let outcome = validate(&node);
        match expected {
            Ok(name) => assert!(outcome.stderr.contains(&format!("; {name}@sha1:{id}")), "{outcome:?}"),
            Err(words) => assert_refused(&outcome, words),
        }
    };
    check("tag: v1.0.0", Ok("v1.0.0"));
    check("semver: =1.0.0", Ok("v1.0.0"));
    check("tag: v1.1.0", Err(&["the tag v1.1.0 is not signed"]));
    check("tag: v1.2.0", Err(&["the tag v1.2.0 is a tag without an object of its own"]));
    check("tag: v1.3.0", Err(&["the tag v1.3.0 is signed by the key", "which the allowed signers do not have"]));
    check("semver: ^2", Err(&["the tag v2.0.0 was signed as the tag `v1.0.0`"]));
}

#[test]
fn unsigned_commits_and_replays_of_signed_ones_leave_the_rules_alone() {
    let lab = lab();
    let signed = Signed::new();
    signed.allow(&[("ada@example.org", "", "ada")]);
    let first = signed.publish('a', "first", Some("ada"));
    let mut node = TestNode::router(&lab).unwrap();
    node.set_source(&signed.source("branch: main", "mode: all-since-last")).unwrap();
    let at = |id: &str| format!("main@sha1:{id}");
    let daemon = Daemon::start(&node);
    wait_for(&node, "the first commit", |s| s["revision"] == at(&first));
    let second = signed.publish('b', "second", Some("ada"));
    let status = wait_for(&node, "the second commit", |s| s["revision"] == at(&second));
    let generation = status["generation"].clone();
    let refused = |words: &[&str]| {
        let status = wait_for(&node, "a refusal", |s| {
            let error = s["source"]["message"].as_str().unwrap_or_default();
            s["source"]["state"] == "refused" && words.iter().all(|word| error.contains(word))
        });
        assert_eq!(
            (&status["generation"], &status["revision"]),
            (&generation, &Value::from(at(&second))),
            "{status:#}"
        );
        assert_eq!(status["source"]["reason"], "signature");
    };
    // The older signed commit again.
    signed.repository.git(&["push", "--quiet", "origin", &format!("+{first}:main")]).unwrap();
    refused(&[&first, "does not contain", &second, "allowRollback"]);
    // An unsigned commit below a signed one.
    let unsigned = signed.publish('a', "slipped in", None);
    let _covered = signed.publish('b', "on top", Some("ada"));
    refused(&[&unsigned, "is not signed"]);
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    // Asked for, it is taken.
    signed.repository.git(&["push", "--quiet", "origin", &format!("+{first}:main")]).unwrap();
    node.set_source(&signed.source("branch: main", "mode: head, allowRollback: true")).unwrap();
    let daemon = Daemon::start(&node);
    wait_for(&node, "the rollback", |s| s["revision"] == at(&first));
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}

/// Posts a body to the hook in the node's namespace; returns the status, or none when the connection was closed without one.
fn post(node: &Topology, head: &str, body: &[u8]) -> Option<u16> {
    use std::io::Write as _;
    let mut stream = node.router.enter(|| std::net::TcpStream::connect("127.0.0.1:9797")).unwrap().unwrap();
    stream.set_read_timeout(Some(20 * SECOND)).unwrap();
    let _ = write!(stream, "{head}Host: x\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(body);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.split_whitespace().nth(1).and_then(|status| status.parse().ok())
}

/// HMAC-SHA256 as another program has it.
fn hmac(secret: &str, body: &str) -> String {
    let script = format!("printf %s '{body}' | openssl dgst -sha256 -hmac '{secret}' -r | cut -d' ' -f1");
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_signed_webhook_makes_the_daemon_look_and_nothing_else_does() {
    let lab = lab();
    let (repository, first) = repository();
    let mut node = TestNode::router(&lab).unwrap();
    let secret = node.scratch().join("secret");
    fs::write(&secret, "hush\n").unwrap();
    let url = repository.path().display().to_string();
    node.set_source(&format!("{{git: {{url: {url}, ref: {{branch: main}}, subpath: policies, interval: 1h}}}}"))
        .unwrap();
    node.set_spec(&format!("webhook: {{secretFile: {}}}", secret.display())).unwrap();
    let daemon = Daemon::start(&node);
    let at = |id: &str| format!("main@sha1:{id}");
    wait_for(&node, "the first commit", |s| s["revision"] == at(&first));
    let body = "{\"ref\": \"refs/heads/main\"}";
    let signature =
        |secret: &str| format!("POST /hook HTTP/1.1\r\nX-Hub-Signature-256: sha256={}\r\n", hmac(secret, body));

    let second = repository.publish("policies/probe.yaml", &rules('b', "second"), "second").unwrap();
    assert_eq!(post(&lab, &signature("guess"), body.as_bytes()), Some(403));
    assert_eq!(post(&lab, "POST /hook HTTP/1.1\r\n", body.as_bytes()), Some(403));
    assert_eq!(post(&lab, "POST /hook HTTP/1.1\r\nX-Gitlab-Token: hus\r\n", body.as_bytes()), Some(403));
    assert_eq!(post(&lab, "POST /else HTTP/1.1\r\n", b""), Some(404));
    assert_eq!(post(&lab, "GET /hook HTTP/1.1\r\n", b""), Some(405));
    assert_eq!(post(&lab, &signature("hush"), &vec![b' '; (1 << 20) + 1]), Some(413));
    thread::sleep(SECOND);
    assert_eq!(node.status().unwrap()["revision"], at(&first), "a refused request made the daemon look");
    let begun = Instant::now();
    assert_eq!(post(&lab, &signature("hush"), body.as_bytes()), Some(202));
    wait_for(&node, "the second commit", |s| s["revision"] == at(&second));
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());

    // The secret is read at each request; GitLab's way.
    fs::write(&secret, "other").unwrap();
    let third = repository.publish("policies/probe.yaml", &rules('a', "third"), "third").unwrap();
    assert_eq!(post(&lab, "POST /hook HTTP/1.1\r\nX-Gitlab-Token: other\r\n", body.as_bytes()), Some(202));
    wait_for(&node, "the third commit", |s| s["revision"] == at(&third));

    // Slow ones keep nobody waiting, and are hung up on.
    let slow: Vec<_> = (0..8)
        .map(|_| {
            use std::io::Write as _;
            let mut stream = lab.router.enter(|| std::net::TcpStream::connect("127.0.0.1:9797")).unwrap().unwrap();
            stream.write_all(b"POST /hook HTTP/1.1\r\nX-").unwrap();
            stream
        })
        .collect();
    thread::sleep(12 * SECOND);
    for mut stream in slow {
        stream.set_read_timeout(Some(SECOND)).unwrap();
        let mut answer = Vec::new();
        assert!(stream.read_to_end(&mut answer).is_ok(), "a slow connection is still open");
    }
    let answers: Vec<_> = (0..40).map(|_| post(&lab, &signature("guess"), body.as_bytes())).collect();
    let many = answers.iter().filter(|status| **status == Some(429)).count();
    assert!(many >= 20 && answers.contains(&Some(403)), "{answers:?}");
    let log = daemon.log();
    assert!(!log.contains("hush"), "{log}");
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}
