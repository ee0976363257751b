//! Reading local repositories, made object by object so that also those exist that no porcelain would make.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;

use git2::{Signature, Time};
use tempfile::TempDir;

use super::*;
use crate::source::git::read_local;

/// A bare repository with the branch `main`.
struct Made {
    folder: TempDir,
    repository: Repository,
}

impl Made {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = git2::RepositoryInitOptions::new();
        let repository = Repository::init_opts(folder.path(), options.bare(true).initial_head("main")).unwrap();
        Self { folder, repository }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn blob(&self, content: &[u8]) -> Oid {
        self.repository.blob(content).unwrap()
    }

    /// A tree of entries (name, mode, object); written raw, as git2 would refuse some names and missing objects.
    fn tree(&self, entries: &[(&[u8], i32, Oid)]) -> Oid {
        let mut bytes = Vec::new();
        let mut sorted = entries.to_vec();
        sorted.sort_by_key(|(name, mode, _)| [*name, if *mode == MODE_DIRECTORY { b"/" } else { b"" }].concat());
        for (name, mode, id) in sorted {
            bytes.extend(format!("{mode:o} ").into_bytes());
            bytes.extend(name);
            bytes.push(0);
            bytes.extend(id.as_bytes());
        }
        self.repository.odb().unwrap().write(ObjectType::Tree, &bytes).unwrap()
    }

    /// Commits `tree` to `main`.
    fn commit(&self, tree: Oid, message: &str) -> Oid {
        let author = Signature::new("Ada", "ada@example.org", &Time::new(1_760_000_000, 60)).unwrap();
        let tree = self.repository.find_tree(tree).unwrap();
        let parent = self.repository.refname_to_id("refs/heads/main").ok();
        let parent = parent.map(|id| self.repository.find_commit(id).unwrap());
        let parents: Vec<_> = parent.iter().collect();
        self.repository.commit(Some("refs/heads/main"), &author, &author, message, &tree, &parents).unwrap()
    }

    fn tag(&self, name: &str, commit: Oid) {
        let object = self.repository.find_object(commit, None).unwrap();
        let tagger = Signature::new("Ada", "ada@example.org", &Time::new(1_760_000_000, 0)).unwrap();
        self.repository.tag(name, &object, &tagger, name, false).unwrap();
    }

    fn read(&self, rev: &str, subpath: Option<&str>) -> Result<Snapshot, GitError> {
        read_local(self.path(), rev, subpath, &Limits::default())
    }

    fn error(&self, rev: &str, subpath: Option<&str>) -> String {
        self.read(rev, subpath).unwrap_err().to_string()
    }
}

const FILE: i32 = 0o100_644;

fn policies(made: &Made, content: &str) -> Oid {
    let file = made.blob(content.as_bytes());
    let lists = made.tree(&[(b"partners.txt", FILE, made.blob(b"10.0.0.0/8\n"))]);
    let hidden = made.tree(&[(b"ci.yaml", FILE, file)]);
    let tree = made.tree(&[
        (b"a.yaml", FILE, file),
        (b"b.yaml", 0o100_755, file),
        (b"lists", MODE_DIRECTORY, lists),
        (b".github", MODE_DIRECTORY, hidden),
    ]);
    made.tree(&[(b"policies", MODE_DIRECTORY, tree), (b"README.md", FILE, file)])
}

#[test]
fn a_commit_reads_like_the_directory_that_it_would_check_out() {
    let made = Made::new();
    let commit = made.commit(policies(&made, "a: 1"), "routes: first\n\nbody");
    let snapshot = made.read("main", Some("policies")).unwrap();
    assert_eq!(snapshot.revision, format!("main@sha1:{commit}"));
    let files: Vec<_> = snapshot.files.keys().map(String::as_str).collect();
    assert_eq!(files, ["a.yaml", "b.yaml", "lists/partners.txt"]);
    assert_eq!(snapshot.content("lists/partners.txt"), Some(b"10.0.0.0/8\n".as_slice()));
    assert_eq!(snapshot.files, made.read("main", Some("policies/")).unwrap().files);
    assert!(made.read("main", None).unwrap().files.contains_key("README.md"));
}

#[test]
fn a_revision_is_named_by_branch_tag_id_or_expression() {
    let made = Made::new();
    let first = made.commit(policies(&made, "a: 1"), "first");
    let second = made.commit(policies(&made, "a: 2"), "second");
    made.tag("v1.0.0", first);
    made.tag("v1.2.0", second);
    let check = |rev: &str, expected: String| assert_eq!(made.read(rev, None).unwrap().revision, expected, "{rev}");
    check("main", format!("main@sha1:{second}"));
    check("HEAD", format!("main@sha1:{second}"));
    check("refs/heads/main", format!("main@sha1:{second}"));
    check("v1.0.0", format!("v1.0.0@sha1:{first}"));
    check("HEAD~1", format!("sha1:{first}"));
    check(&first.to_string(), format!("sha1:{first}"));
    check(&first.to_string()[..12], format!("sha1:{first}"));
    check("semver:^1", format!("v1.2.0@sha1:{second}"));
    check("semver: <1.2", format!("v1.0.0@sha1:{first}"));
}

#[test]
fn what_cannot_be_resolved_says_so_by_name() {
    let made = Made::new();
    let place = made.path().display().to_string();
    assert_eq!(made.error("main", None), format!("`main` names nothing in the repository `{place}`"));
    made.commit(policies(&made, "a: 1"), "first");
    assert_eq!(made.error("gone", None), format!("`gone` names nothing in the repository `{place}`"));
    assert_eq!(made.error("HEAD~7", None), format!("`HEAD~7` names nothing in the repository `{place}`"));
    assert_eq!(made.error("main:policies", None), "`main:policies` is a tree, not a commit");
    assert!(made.error("a..b~^{", None).contains("`a..b~^{`"));
    assert_eq!(
        made.error("semver:^3", None),
        format!("no tag of the repository `{place}` is a version in the range `^3`")
    );
    assert!(made.error("semver:newest", None).starts_with("`newest` is not a range of versions"));
    let no_repository = tempfile::tempdir().unwrap();
    let error = read_local(no_repository.path(), "main", None, &Limits::default()).unwrap_err();
    assert!(matches!(error, GitError::NotARepository { .. }), "{error}");
    let missing = read_local(&made.path().join("no"), "main", None, &Limits::default()).unwrap_err();
    assert!(matches!(missing, GitError::NotARepository { .. }), "{missing}");
}

#[test]
fn links_submodules_and_odd_names_are_faults_of_their_path() {
    let made = Made::new();
    let file = made.blob(b"a: 1");
    let elsewhere = Oid::from_str("1234567890123456789012345678901234567890").unwrap();
    let tree = made.tree(&[
        (b"a.yaml", FILE, file),
        (b"link.yaml", MODE_LINK, made.blob(b"/etc/passwd")),
        (b"partners", MODE_SUBMODULE, elsewhere),
        (b"\xff.yaml", FILE, file),
    ]);
    let root = made.tree(&[(b"policies", MODE_DIRECTORY, tree), (b"way", MODE_LINK, made.blob(b"policies"))]);
    let commit = made.commit(root, "links");
    let files = made.read("main", Some("policies")).unwrap().files;
    assert_eq!(files["link.yaml"], SourceFile::Fault(FileFault::Link { target: "/etc/passwd".to_owned() }));
    assert_eq!(files["partners"], SourceFile::Fault(FileFault::Submodule { commit: elsewhere.to_string() }));
    assert_eq!(files["\u{fffd}.yaml"], SourceFile::Fault(FileFault::Name));
    assert_eq!(
        made.error("main", Some("way")),
        format!("`way` in the commit {commit} is a symbolic link, not a directory")
    );
    let inside = made.error("main", Some("policies/partners/x"));
    assert_eq!(inside, format!("`policies/partners` in the commit {commit} is a submodule, not a directory"));
    let faults = crate::policy::validate(&made.read("main", Some("policies")).unwrap()).diagnostics;
    let shown: Vec<_> = faults.iter().map(|d| (d.code.number(), d.file.as_str())).collect();
    assert!(shown.contains(&("WL0001", "link.yaml")), "{shown:?}");
    assert!(shown.contains(&("WL0007", "partners")), "{shown:?}");
}

#[test]
fn an_empty_tree_and_a_lost_subpath_are_errors_and_never_no_rules() {
    let made = Made::new();
    let nothing = made.tree(&[]);
    let hidden = made.tree(&[(b".keep", FILE, made.blob(b""))]);
    let commit = made.commit(made.tree(&[(b"hidden", MODE_DIRECTORY, hidden)]), "hidden files only");
    assert!(made.error("main", None).ends_with("holds no file; that never means \"remove every rule\""));
    assert!(made.error("main", Some("hidden")).starts_with(&format!("`hidden` of main@sha1:{commit} holds no file")));
    assert!(
        made.error("main", Some("policies")).starts_with(&format!("the commit {commit} has no directory `policies`"))
    );
    made.commit(nothing, "empty");
    assert!(made.error("main", None).contains("holds no file"));
    for bad in ["/etc", "..", "a//b", "./a", ""] {
        assert!(matches!(made.read("main", Some(bad)), Err(GitError::BadSubpath { .. })), "{bad}");
    }
}

#[test]
fn limits_stop_the_read_and_a_large_blob_is_recorded_and_not_read() {
    let made = Made::new();
    let files: Vec<_> =
        (0..4).map(|n| (format!("{n}.txt").into_bytes(), made.blob(format!("{n}123456789").as_bytes()))).collect();
    let entries: Vec<_> = files.iter().map(|(name, id)| (name.as_slice(), FILE, *id)).collect();
    let (b, large) = (made.tree(&entries), made.blob(&vec![b' '; (4 << 20) + 1]));
    let a = made.tree(&[(b"b", MODE_DIRECTORY, b)]);
    made.commit(made.tree(&[(b"a", MODE_DIRECTORY, a)]), "deep");
    let check = |limits: Limits, expected: &str| {
        let error = read_local(made.path(), "main", None, &limits).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
    };
    check(Limits { files_max: 3, ..Limits::default() }, "has more than 3 files");
    check(Limits { depth_max: 1, ..Limits::default() }, "has more than 1 levels of directories");
    check(Limits { entries_max: 5, ..Limits::default() }, "has more than 5 directory entries");
    check(Limits { total_bytes_max: 39, ..Limits::default() }, "has more than 39 bytes in its files");
    made.commit(made.tree(&[(b"large.yaml", FILE, large)]), "large");
    let fault = FileFault::Oversized { size_bytes: (4 << 20) + 1, limit_bytes: 4 << 20 };
    assert_eq!(made.read("main", None).unwrap().files["large.yaml"], SourceFile::Fault(fault));
}

#[test]
fn a_missing_object_is_damage_and_never_a_missing_file() {
    let made = Made::new();
    let file = made.blob(b"a: 1");
    made.commit(made.tree(&[(b"a.yaml", FILE, file), (b"b.yaml", FILE, made.blob(b"b: 1"))]), "x");
    let hex = file.to_string();
    let object = made.path().join("objects").join(&hex[..2]).join(&hex[2..]);
    fs::remove_file(object).unwrap();
    assert!(matches!(made.read("main", None), Err(GitError::Damaged { .. })));
}

#[test]
fn a_folder_of_a_working_tree_finds_its_repository_and_its_place_in_it() {
    let folder = tempfile::tempdir().unwrap();
    Repository::init(folder.path()).unwrap();
    fs::create_dir_all(folder.path().join("policies/deep")).unwrap();
    let place = |below: &str| Repo::around(&folder.path().join(below)).unwrap().1;
    assert_eq!(place("policies/deep").as_deref(), Some("policies/deep"));
    assert_eq!(place("").as_deref(), None);
    assert!(matches!(Repo::around(Path::new("/proc")), Err(GitError::NotARepository { .. })));
}

#[test]
fn the_highest_version_of_a_range_is_taken() {
    let tags = ["v1.0.0", "v1.10.0", "v1.9.0", "2.0.0", "v2.1.0-rc.1", "latest", "v3", "routes-v9.0.0"];
    let check = |range: &str, expected: Option<&str>| {
        assert_eq!(highest_version(range, tags.into_iter()).unwrap(), expected, "{range}");
    };
    check("^1", Some("v1.10.0"));
    check("~1.9", Some("v1.9.0"));
    check(">=1, <3", Some("2.0.0"));
    check("*", Some("2.0.0"));
    check(">=2.1.0-rc.0", Some("v2.1.0-rc.1"));
    check("^4", None);
}

#[test]
fn a_commit_says_who_when_and_what() {
    let made = Made::new();
    let id = made.commit(policies(&made, "a: 1"), "routes: first\n\nbody");
    let commit = Repo::open(made.path()).unwrap().resolve("main").unwrap().commit;
    let expected = Commit {
        id: id.to_string(),
        author: "Ada <ada@example.org>".to_owned(),
        author_unix_s: 1_760_000_000,
        subject: "routes: first".to_owned(),
    };
    assert_eq!(commit, expected);
}
