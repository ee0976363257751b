//! The CI kit of `examples/ci` and the repository of `examples/history`: the commands of their YAML and README are run as a
//! runner would run them, against a comments API that a thread of the test stands for.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;
use wayleave_tests::{Outcome, TestNode, Topology, binary, require_root_and_bpf};

const POLICY: &str = "\
apiVersion: wayleave/v1
kind: RoutePolicy
metadata: {name: branch-offices}
spec:
  nextHops:
    - {name: edge-a, via: 192.0.2.1, port: uplink}
  routes:
    - {prefix: 10.20.0.0/16, nextHops: [{name: edge-a}]}
";
const TEST: &str = "\
apiVersion: wayleave/v1
kind: PolicyTest
metadata: {name: reachability}
spec:
  cases:
    - {packet: {src: 198.18.0.1, dst: 10.20.3.4}, expect: {verdict: forward}}
";
const MARKER: &str = "<!-- wayleave-plan: policies -->\n";
const TOKEN: &str = "a-secret-token";

fn kit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/ci").canonicalize().unwrap()
}

/// One request to the comments API.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

#[derive(Debug, Default)]
struct Comments {
    requests: Vec<Request>,
    /// Id and text; text that cannot be changed belongs to somebody else.
    all: Vec<(u64, String, bool)>,
    /// Answer of everything that writes, instead of doing it.
    refuse: Option<u16>,
}

/// The comments of one pull request, as GitHub and GitLab serve them: pages of 100, oldest first.
struct Api {
    address: String,
    comments: Arc<Mutex<Comments>>,
}

impl Api {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let comments = Arc::new(Mutex::new(Comments::default()));
        let served = Arc::clone(&comments);
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| serve(&stream, &served)));
        Self { address, comments }
    }

    /// The requests since the last time, those that only read left out.
    fn writes(&self) -> Vec<Request> {
        let mut requests = std::mem::take(&mut self.comments.lock().unwrap().requests);
        requests.retain(|request| request.method != "GET");
        requests
    }

    fn texts(&self) -> Vec<String> {
        self.comments.lock().unwrap().all.iter().map(|(_, text, _)| text.clone()).collect()
    }
}

fn serve(stream: &TcpStream, comments: &Mutex<Comments>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut comments = comments.lock().unwrap();
    comments.requests.push(Request { method: method.clone(), path: path.clone(), headers, body: body.clone() });
    let text = || body["body"].as_str().unwrap().to_owned();
    let (status, answer) = match (method.as_str(), comments.refuse) {
        ("GET", _) => {
            let page: usize = path.rsplit("page=").next().unwrap().parse().unwrap();
            let page = comments.all.iter().skip((page - 1) * 100).take(100);
            (200, page.map(|(id, text, _)| json!({"id": id, "body": text})).collect())
        }
        (_, Some(status)) => (status, json!({"message": "Resource not accessible by integration"})),
        ("POST", None) => {
            let id = comments.all.len() as u64 + 1000;
            comments.all.push((id, text(), true));
            (201, json!({"id": id}))
        }
        _ => {
            let id: u64 = path.rsplit('/').next().unwrap().parse().unwrap();
            match comments.all.iter_mut().find(|(one, _, ours)| *one == id && *ours) {
                Some(comment) => {
                    comment.1 = text();
                    (200, json!({"id": id}))
                }
                None => (403, json!({})),
            }
        }
    };
    let answer = answer.to_string();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
        answer.len()
    )
    .unwrap();
}

/// A policy repository with `main` and the branch of a pull request, and what a runner sets.
struct Checkout {
    directory: TempDir,
    environment: BTreeMap<String, String>,
}

impl Checkout {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(binary().unwrap(), bin.join("wayleave")).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut environment = BTreeMap::from([("PATH".to_owned(), path)]);
        for role in ["AUTHOR", "COMMITTER"] {
            environment.insert(format!("GIT_{role}_NAME"), "Mara".to_owned());
            environment.insert(format!("GIT_{role}_EMAIL"), "mara@example.org".to_owned());
        }
        let checkout = Self { directory, environment };
        fs::create_dir_all(checkout.repo().join("policies")).unwrap();
        checkout.git("init -q -b main .");
        checkout.write("branch-offices.yaml", POLICY);
        checkout.write("reachability.yaml", TEST);
        checkout.commit("main");
        checkout.git("checkout -q -b change");
        checkout.write("branch-offices.yaml", &POLICY.replace("10.20.0.0/16", "10.0.0.0/8"));
        checkout.commit("change");
        checkout
    }

    fn repo(&self) -> PathBuf {
        self.directory.path().join("repo")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.repo().join("policies").join(name), text).unwrap();
    }

    fn commit(&self, message: &str) {
        self.git("add -A");
        self.git(&format!("commit -q -m {message}"));
    }

    /// Runs git, which must succeed; returns what it says.
    fn git(&self, arguments: &str) -> String {
        let outcome = self.shell(&format!("git {arguments}"), &BTreeMap::new());
        assert_eq!(outcome.code, Some(0), "git {arguments}: {outcome:?}");
        outcome.stdout.trim().to_owned()
    }

    /// Runs a script as runners do: `sh -e`.
    fn shell(&self, script: &str, more: &BTreeMap<String, String>) -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-e", "-c", script]).current_dir(self.repo()).stdin(Stdio::null());
        for name in ["GITHUB_TOKEN", "GITHUB_STEP_SUMMARY", "CI_MERGE_REQUEST_IID"] {
            command.env_remove(name);
        }
        command.envs(&self.environment).envs(more).output().unwrap().into()
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }
}

fn yaml(path: &Path) -> Value {
    serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Runs the composite action as a runner does, for the event of a pull request or a push; the first step that fails ends it.
fn run_action(checkout: &Checkout, api: &Api, event: &str, token: &str) -> Outcome {
    let path = |name: &str| checkout.directory.path().join(name);
    let base = checkout.git("rev-parse main");
    let document = json!({"pull_request": {"number": 7, "base": {"sha": base}}});
    fs::write(path("event.json"), if event == "pull_request" { document } else { json!({}) }.to_string()).unwrap();
    let mut environment = BTreeMap::from([
        ("GITHUB_EVENT_NAME".to_owned(), event.to_owned()),
        ("GITHUB_REPOSITORY".to_owned(), "net/policies".to_owned()),
        ("GITHUB_API_URL".to_owned(), api.address.clone()),
        ("GITHUB_ACTION_PATH".to_owned(), kit().join("github").display().to_string()),
        ("RUNNER_TEMP".to_owned(), checkout.directory.path().display().to_string()),
    ]);
    for (name, file) in [
        ("GITHUB_EVENT_PATH", "event.json"),
        ("GITHUB_STEP_SUMMARY", "summary.md"),
        ("GITHUB_OUTPUT", "output"),
        ("GITHUB_PATH", "path"),
    ] {
        environment.insert(name.to_owned(), path(file).display().to_string());
    }
    let action = yaml(&kit().join("github/action.yml"));
    assert_eq!(action["runs"]["using"], "composite");
    let mut all = Outcome { code: Some(0), stdout: String::new(), stderr: String::new() };
    for step in action["runs"]["steps"].as_array().unwrap() {
        match step["if"].as_str() {
            Some("github.event_name == 'pull_request'") if event != "pull_request" => continue,
            None | Some("github.event_name == 'pull_request'") => {}
            Some(other) => panic!("{other} is not what this test knows"),
        }
        assert_eq!(step["shell"], "sh", "a composite step names its shell");
        let mut environment = environment.clone();
        for (name, value) in step["env"].as_object().unwrap() {
            let value = match value.as_str().unwrap() {
                "${{ inputs.policies }}" => action["inputs"]["policies"]["default"].as_str().unwrap(),
                "${{ inputs.token }}" => token,
                other => panic!("{other} is not what this test knows"),
            };
            environment.insert(name.clone(), value.to_owned());
        }
        let script = step["run"].as_str().unwrap();
        // What a pull request says must not become part of a script.
        assert!(!script.contains("${{"), "{script}");
        let outcome = checkout.shell(script, &environment);
        all.stdout.push_str(&outcome.stdout);
        all.stderr.push_str(&outcome.stderr);
        all.code = outcome.code;
        if outcome.code != Some(0) {
            break;
        }
    }
    assert!(!all.stdout.contains(TOKEN) && !all.stderr.contains(TOKEN), "{all:?}");
    all
}

#[test]
fn the_github_action_makes_one_comment_and_updates_it() {
    let (checkout, api) = (Checkout::new(), Api::start());
    // Others talk, too, over more than one page; one of them knows the marker.
    {
        let mut comments = api.comments.lock().unwrap();
        comments.all = (0..120).map(|id| (id, format!("looks good {id}"), false)).collect();
        comments.all[3].1 = format!("{MARKER}I am a plan, too");
    }
    let outcome = run_action(&checkout, &api, "pull_request", TOKEN);
    assert_eq!(outcome.code, Some(0), "a plan with changes is no failure: {outcome:?}");
    let writes: Vec<_> = api.writes();
    let [refused, made] = &writes[..] else { panic!("{writes:?}") };
    assert_eq!((refused.method.as_str(), refused.path.as_str()), ("PATCH", "/repos/net/policies/issues/comments/3"));
    assert_eq!((made.method.as_str(), made.path.as_str()), ("POST", "/repos/net/policies/issues/7/comments"));
    assert_eq!(made.headers["authorization"], format!("Bearer {TOKEN}"));
    let text = made.body["body"].as_str().unwrap();
    assert!(text.starts_with(MARKER), "{text}");
    assert!(text.contains("10.0.0.0/8") && text.contains("1 to add"), "{text}");
    assert!(checkout.file("output").contains("plan="));
    assert_eq!(api.texts().len(), 121);

    // The second push: the same comment, another text.
    checkout.write("branch-offices.yaml", &POLICY.replace("10.20.0.0/16", "10.16.0.0/12"));
    checkout.commit("better");
    let outcome = run_action(&checkout, &api, "pull_request", TOKEN);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let last = api.writes().pop().unwrap();
    assert_eq!((last.method.as_str(), last.path.as_str()), ("PATCH", "/repos/net/policies/issues/comments/1120"));
    assert_eq!(api.texts().len(), 121);
    assert!(api.texts()[120].contains("10.16.0.0/12") && !api.texts()[120].contains("10.0.0.0/8"));
    assert_eq!(checkout.file("summary.md"), "", "the comment is enough");
}

#[test]
fn a_fork_without_a_token_that_may_write_has_the_plan_in_the_summary() {
    for (token, refuse) in [("", None), (TOKEN, Some(403)), (TOKEN, Some(404))] {
        let (checkout, api) = (Checkout::new(), Api::start());
        api.comments.lock().unwrap().refuse = refuse;
        let outcome = run_action(&checkout, &api, "pull_request", token);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stdout.contains("::notice title=wayleave plan::"), "{outcome:?}");
        assert!(checkout.file("summary.md").contains("10.0.0.0/8"), "{refuse:?}: {}", checkout.file("summary.md"));
        assert!(api.texts().is_empty());
    }
    // A server that fails is not a fork.
    let (checkout, api) = (Checkout::new(), Api::start());
    api.comments.lock().unwrap().refuse = Some(422);
    let outcome = run_action(&checkout, &api, "pull_request", TOKEN);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
}

#[test]
fn a_broken_policy_fails_the_job_beside_its_line_and_comments_nothing() {
    let (checkout, api) = (Checkout::new(), Api::start());
    checkout.write("branch-offices.yaml", &POLICY.replace("192.0.2.1", "192.0.2.300"));
    checkout.commit("broken");
    let outcome = run_action(&checkout, &api, "pull_request", TOKEN);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stdout.contains("::error file=policies/branch-offices.yaml,line=6,"), "{outcome:?}");
    assert!(api.writes().is_empty());
    // A failing test likewise.
    checkout.write("branch-offices.yaml", &POLICY.replace("10.20.0.0/16", "10.200.0.0/16"));
    checkout.commit("mistyped");
    let outcome = run_action(&checkout, &api, "pull_request", TOKEN);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stdout.contains("::error file=policies/reachability.yaml,line=6,title=policy test failed::"));
    assert!(api.writes().is_empty());
    // A push to main is checked, and has nobody to comment to.
    checkout.git("checkout -q main");
    let outcome = run_action(&checkout, &api, "push", TOKEN);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(api.comments.lock().unwrap().requests.is_empty());
}

#[test]
fn the_sample_workflow_asks_for_little_and_pins_what_it_uses() {
    let workflow = yaml(&kit().join("github/workflow.yml"));
    assert_eq!(workflow["permissions"], json!({"contents": "read"}));
    let job = &workflow["jobs"]["policies"];
    assert_eq!(job["permissions"], json!({"contents": "read", "pull-requests": "write"}));
    for step in job["steps"].as_array().unwrap() {
        match step["uses"].as_str() {
            Some(uses) if !uses.starts_with("./") => {
                let commit = uses.split('@').nth(1).unwrap();
                assert!(commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{uses}");
            }
            _ => {}
        }
    }
    // Its installation: by digest, or not at all.
    let (checkout, directory) = (Checkout::new(), TempDir::new().unwrap());
    let built = directory.path().join("wayleave");
    fs::write(&built, "#!/bin/sh\necho it runs\n").unwrap();
    let digest = checkout.shell(&format!("sha256sum <{}", built.display()), &BTreeMap::new()).stdout;
    let install = job["steps"].as_array().unwrap().iter().find(|step| step["name"] == "Install wayleave").unwrap();
    let script = install["run"].as_str().unwrap().replace(".github/wayleave/", &format!("{}/", kit().display()));
    for (digest, code) in [(digest.split(' ').next().unwrap(), 0), ("00", 1)] {
        let temporary = TempDir::new().unwrap();
        let at = |name: &str| temporary.path().join(name).display().to_string();
        let environment = BTreeMap::from([
            ("WAYLEAVE_URL".to_owned(), format!("file://{}", built.display())),
            ("WAYLEAVE_SHA256".to_owned(), digest.to_owned()),
            ("RUNNER_TEMP".to_owned(), temporary.path().display().to_string()),
            ("GITHUB_PATH".to_owned(), at("path")),
        ]);
        let outcome = checkout.shell(&script, &environment);
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        assert_eq!(temporary.path().join("bin/wayleave").exists(), code == 0);
        if code == 0 {
            let said = checkout.shell(&at("bin/wayleave"), &BTreeMap::new());
            assert_eq!(said.stdout, "it runs\n");
        }
    }
}

/// Runs the scripts of the GitLab job, which share one shell.
fn run_gitlab(checkout: &Checkout, api: &Api, iid: Option<&str>, token: Option<&str>) -> Outcome {
    let template = yaml(&kit().join("gitlab/wayleave.gitlab-ci.yml"));
    let mut environment = BTreeMap::from([
        ("CI_API_V4_URL".to_owned(), format!("{}/api/v4", api.address)),
        ("CI_PROJECT_ID".to_owned(), "42".to_owned()),
        ("CI_MERGE_REQUEST_DIFF_BASE_SHA".to_owned(), checkout.git("merge-base main HEAD")),
    ]);
    for (name, value) in template["variables"].as_object().unwrap() {
        environment.insert(name.clone(), value.as_str().unwrap().to_owned());
    }
    environment.insert("WAYLEAVE_CI".to_owned(), kit().display().to_string());
    environment.extend(iid.map(|iid| ("CI_MERGE_REQUEST_IID".to_owned(), iid.to_owned())));
    environment.extend(token.map(|token| ("WAYLEAVE_GITLAB_TOKEN".to_owned(), token.to_owned())));
    let job = &template["wayleave"];
    assert!(job["image"].as_str().unwrap().contains(':') && !job["image"].as_str().unwrap().ends_with("latest"));
    let lines = ["before_script", "script"].map(|key| job[key].as_array().unwrap().clone()).concat();
    let script: Vec<&str> = lines.iter().map(|line| line.as_str().unwrap()).collect();
    checkout.shell(&script.join("\n"), &environment)
}

#[test]
fn the_gitlab_job_makes_one_note_and_updates_it() {
    let (checkout, api) = (Checkout::new(), Api::start());
    let outcome = run_gitlab(&checkout, &api, Some("5"), Some(TOKEN));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let writes = api.writes();
    let [made] = &writes[..] else { panic!("{writes:?}") };
    assert_eq!((made.method.as_str(), made.path.as_str()), ("POST", "/api/v4/projects/42/merge_requests/5/notes"));
    assert_eq!(made.headers["private-token"], TOKEN);
    assert!(made.body["body"].as_str().unwrap().starts_with(MARKER));
    checkout.write("branch-offices.yaml", &POLICY.replace("10.20.0.0/16", "10.16.0.0/12"));
    checkout.commit("better");
    let outcome = run_gitlab(&checkout, &api, Some("5"), Some(TOKEN));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let writes = api.writes();
    let [updated] = &writes[..] else { panic!("{writes:?}") };
    let expected = ("PUT", "/api/v4/projects/42/merge_requests/5/notes/1000");
    assert_eq!((updated.method.as_str(), updated.path.as_str()), expected);
    assert!(api.texts().len() == 1 && api.texts()[0].contains("10.16.0.0/12"));
    let quality: Value =
        serde_json::from_str(&fs::read_to_string(checkout.repo().join("gl-code-quality.json")).unwrap()).unwrap();
    assert_eq!(quality, json!([]));
    assert!(fs::read_to_string(checkout.repo().join("wayleave-tests.xml")).unwrap().contains("<testcase"));
    // Without a token the plan is in the log; on main there is none.
    let outcome = run_gitlab(&checkout, &api, Some("5"), None);
    assert!(outcome.code == Some(0) && outcome.stdout.contains("10.16.0.0/12"), "{outcome:?}");
    let outcome = run_gitlab(&checkout, &api, None, Some(TOKEN));
    assert!(outcome.code == Some(0) && !outcome.stdout.contains("10.16.0.0/12"), "{outcome:?}");
    assert!(api.writes().is_empty());
}

#[test]
fn a_broken_policy_fails_the_gitlab_job_with_a_report() {
    let (checkout, api) = (Checkout::new(), Api::start());
    checkout.write("branch-offices.yaml", &POLICY.replace("192.0.2.1", "192.0.2.300"));
    checkout.commit("broken");
    let outcome = run_gitlab(&checkout, &api, Some("5"), Some(TOKEN));
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    let quality: Value =
        serde_json::from_str(&fs::read_to_string(checkout.repo().join("gl-code-quality.json")).unwrap()).unwrap();
    let place = &quality[0]["location"];
    assert_eq!(place["path"], "policies/branch-offices.yaml", "{quality}");
    let begin = &place["lines"]["begin"];
    assert!(*begin == 6 || place["positions"]["begin"]["line"] == 6, "{quality}");
    checkout.write("branch-offices.yaml", &POLICY.replace("10.20.0.0/16", "10.200.0.0/16"));
    checkout.commit("mistyped");
    let outcome = run_gitlab(&checkout, &api, Some("5"), Some(TOKEN));
    assert!(outcome.code == Some(3) && outcome.stdout.contains("FAILED"), "{outcome:?}");
    assert!(fs::read_to_string(checkout.repo().join("wayleave-tests.xml")).unwrap().contains("<failure"));
    assert!(api.writes().is_empty());
}

#[test]
fn a_plan_that_no_comment_holds_is_cut_and_says_so() {
    let checkout = Checkout::new();
    let routes: String = (0..3000)
        .map(|n| format!("    - {{prefix: 10.{}.{}.0/24, nextHops: [{{name: edge-a}}]}}\n", 64 + n / 256, n % 256))
        .collect();
    checkout.write("branch-offices.yaml", &format!("{POLICY}{routes}"));
    checkout.commit("many");
    let script = format!("{}/scripts/plan.sh main HEAD plan.md policies", kit().display());
    let outcome = checkout.shell(&script, &BTreeMap::new());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let plan = fs::read_to_string(checkout.repo().join("plan.md")).unwrap();
    assert!(plan.starts_with(MARKER) && plan.len() <= 65_535, "{}", plan.len());
    assert!(plan.contains("3,000 to add") || plan.contains("3000 to add"), "{}", &plan[..400]);
}

#[test]
fn the_pre_commit_hook_checks_what_is_staged() {
    let checkout = Checkout::new();
    let hook = checkout.repo().join(".git/hooks/pre-commit");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::copy(kit().join("pre-commit/pre-commit"), &hook).unwrap();
    let commit = || checkout.shell("git commit -q -m x", &BTreeMap::new());
    let head = || checkout.git("rev-parse HEAD");
    let before = head();
    // Broken and staged; put right in the work tree only.
    checkout.write("branch-offices.yaml", &POLICY.replace("192.0.2.1", "192.0.2.300"));
    checkout.git("add -A");
    checkout.write("branch-offices.yaml", POLICY);
    let outcome = commit();
    assert!(outcome.code != Some(0) && outcome.stderr.contains("policies/branch-offices.yaml:6:"), "{outcome:?}");
    assert_eq!(head(), before);
    // A failing test likewise.
    checkout.write("branch-offices.yaml", &POLICY.replace("10.20.0.0/16", "10.200.0.0/16"));
    checkout.git("add -A");
    let outcome = commit();
    assert!(outcome.code != Some(0) && outcome.stderr.contains("FAILED"), "{outcome:?}");
    // Good and staged; broken in the work tree only.
    checkout.write("branch-offices.yaml", POLICY);
    checkout.git("add -A");
    checkout.write("branch-offices.yaml", "spec: [broken");
    let outcome = commit();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_ne!(head(), before);
    // A commit of something else is nobody's business, whatever the work tree holds.
    fs::write(checkout.repo().join("README"), "x").unwrap();
    checkout.git("add README");
    assert_eq!(commit().code, Some(0));
    // As a hook of the framework.
    let hooks = yaml(&kit().join("pre-commit/.pre-commit-hooks.yaml"));
    let entry = hooks[0]["entry"].as_str().unwrap();
    assert_eq!((&hooks[0]["language"], &hooks[0]["pass_filenames"]), (&"script".into(), &false.into()));
    assert!(kit().join("pre-commit").join(entry).is_file());
}

/// The commands of a README, each with what follows it: lines indented by four, commands begin with `$ `.
fn walk(readme: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        if let Some(command) = line.strip_prefix("    $ ") {
            commands.push((command.to_owned(), String::new()));
            inside = true;
        } else if inside && (line.starts_with("    ") || line.is_empty()) {
            let (_, output) = commands.last_mut().unwrap();
            output.push_str(line.strip_prefix("    ").unwrap_or(line));
            output.push('\n');
        } else {
            inside = false;
        }
    }
    commands.into_iter().map(|(command, output)| (command, output.trim_end().to_owned())).collect()
}

fn history() -> (Checkout, String) {
    let mut checkout = Checkout::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/history").canonicalize().unwrap();
    fs::remove_dir_all(checkout.repo()).unwrap();
    let made = Command::new(example.join("make.sh")).arg(checkout.repo()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    // Short names as git prints them by itself, whatever the machine's configuration.
    checkout.environment.insert("GIT_CONFIG_GLOBAL".to_owned(), "/dev/null".to_owned());
    (checkout, fs::read_to_string(example.join("README.md")).unwrap())
}

#[test]
fn the_walk_through_the_history_prints_what_its_readme_says() {
    let (checkout, readme) = history();
    let walk = walk(&readme);
    assert!(walk.len() >= 6, "{walk:?}");
    for (command, expected) in walk {
        let outcome = checkout.shell(&format!("set +e; {command}"), &BTreeMap::new());
        let said: Vec<&str> = outcome.stdout.trim_end().lines().map(str::trim_end).collect();
        assert_eq!(said.join("\n"), expected, "{command}");
    }
}

#[test]
fn a_node_that_followed_the_history_says_so() {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    let node = TestNode::new(&lab.router, &[("lan", "lan"), ("uplink", "upa")]).unwrap();
    let (checkout, readme) = history();
    let repo = checkout.repo().display().to_string();
    for release in ["v1.0.0", "v1.1.0"] {
        node.succeed(&["apply", &repo, "--ref", release, "--subpath", "policies", "--auto-approve"]).unwrap();
    }
    // What the tests refuse is not published.
    let refused = ["apply", &repo, "--ref", "v1.1.0~2", "--subpath", "policies", "--auto-approve"];
    assert_eq!(node.run(&refused).unwrap().code, Some(3));
    let said = node.succeed(&["history"]).unwrap().stdout;
    let masked = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| {
                let words = line.split_whitespace().map(|word| {
                    let time = word.ends_with('Z') && word.contains('T');
                    match word.split_once("sha1:") {
                        Some((before, _)) => format!("{before}sha1:"),
                        None if time => "TIME".to_owned(),
                        None => word.to_owned(),
                    }
                });
                let mut words: Vec<String> = words.collect();
                // Who, and a digest, which differs with the node's addresses.
                for before in ["by", "rules"] {
                    if let Some(at) = words.iter().position(|word| word == before) {
                        words.remove(at + 1);
                    }
                }
                words.join(" ")
            })
            .collect()
    };
    let (_, shown) = readme.split_once("the node's):\n\n").unwrap();
    assert_eq!(masked(&said), masked(shown.trim_end()));
}

#[test]
fn the_scripts_are_sound() {
    let mut scripts = vec![kit().join("pre-commit/pre-commit"), kit().join("../history/make.sh")];
    scripts.extend(fs::read_dir(kit().join("scripts")).unwrap().flatten().map(|entry| entry.path()));
    assert!(scripts.len() >= 7);
    for script in scripts {
        let checked = Command::new("sh").arg("-n").arg(&script).status().unwrap();
        assert!(checked.success(), "{}", script.display());
        // Where it is installed.
        if let Ok(output) = Command::new("shellcheck").arg("-S").arg("style").arg(&script).output() {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
