//! SSH signatures of commits and tags, checked in this process.
//!
//! The signature is the armored SSHSIG of OpenSSH's PROTOCOL.sshsig, made with the namespace `git`, over the object without
//! its signature. Who may sign is in a file of the format of ssh-keygen(1), ALLOWED SIGNERS. Whether a key is within its
//! dates is judged by this machine's clock: a commit's own date is whatever its author wrote.

use std::path::Path;

use ring::digest;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use ssh_key::public::{EcdsaPublicKey, KeyData};
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, PublicKey, SshSig};

use super::read::{Repo, Resolved};
use super::spec::{Verify, VerifyMode};

const NAMESPACE: &str = "git";
const ARMOR: &str = "-----BEGIN SSH SIGNATURE-----";
/// Of commits between the last one taken and the new one.
const COMMITS_MAX: usize = 10_000;
/// A commit or tag object; the largest of the Linux kernel's have some ten kilobytes.
const OBJECT_BYTES_MAX: usize = 1 << 20;

/// Why a commit is not taken. `object` is its id, or a tag's name.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("{object} is not signed")]
    Unsigned { object: String },
    #[error("{object} is signed with {kind}, which is not checked; sign with an SSH key (git config gpg.format ssh)")]
    Foreign { object: String, kind: &'static str },
    #[error("the signature of {object} cannot be read")]
    Malformed {
        object: String,
        #[source]
        cause: ssh_key::Error,
    },
    #[error("{object} is signed for the namespace `{namespace}`, not for `git`")]
    Namespace { object: String, namespace: String },
    #[error("{object} is signed by the key {key}, which the allowed signers do not have")]
    UnknownSigner { object: String, key: String },
    #[error("{object} is signed by {principal}, whose key is not valid {when}")]
    Expired { object: String, principal: String, when: String },
    #[error(
        "{object} is signed by {principal} with a key of the type {kind}; Ed25519, RSA and ECDSA over P-256 and P-384 are checked"
    )]
    KeyType { object: String, principal: String, kind: String },
    #[error("{object} has been tampered with: the signature by {principal} is not over its content")]
    Tampered { object: String, principal: String },
    #[error("{object} is a tag without an object of its own, which cannot be signed")]
    Lightweight { object: String },
    #[error("the tag {object} was signed as the tag `{signed}`")]
    TagName { object: String, signed: String },
    #[error("{object} does not contain {last}, which was taken before; `verify.allowRollback: true` takes it")]
    Rollback { object: String, last: String },
    #[error("more than {limit} commits are to be checked since {last}")]
    TooMany { limit: usize, last: String },
    #[error("the allowed signers in {path} cannot be read")]
    Signers {
        path: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("line {line} of the allowed signers in {path}: {what}")]
    SignersLine { path: String, line: usize, what: String },
    #[error("the repository cannot be read")]
    Git(#[from] git2::Error),
}

/// One line of the file.
#[derive(Debug)]
struct Signer {
    principal: String,
    key: KeyData,
    /// Seconds since 1970.
    valid_after: Option<i64>,
    valid_before: Option<i64>,
    namespaces: Option<Vec<String>>,
}

/// Checks what `verify` asks for: `last` is the commit that was taken before, `tag` the name of the tag that is followed.
pub(super) fn check(
    repo: &Repo,
    verify: &Verify,
    resolved: &Resolved,
    last: Option<&str>,
    tag_reference: Option<&str>,
    now_unix_s: i64,
) -> Result<(), VerifyError> {
    let signers = read_signers(&verify.allowed_signers)?;
    let commit = &resolved.commit.id;
    match (verify.mode, last) {
        (VerifyMode::Tag, _) => check_tag(repo, resolved, tag_reference, &signers, now_unix_s),
        (VerifyMode::Head, _) | (VerifyMode::AllSinceLast, None) => check_commit(repo, commit, &signers, now_unix_s),
        (VerifyMode::AllSinceLast, Some(last)) => {
            let new = repo.between(last, commit, COMMITS_MAX)?;
            let Some(new) = new else {
                return Err(VerifyError::TooMany { limit: COMMITS_MAX, last: last.to_owned() });
            };
            // The tip first: its fault is the one to read about.
            check_commit(repo, commit, &signers, now_unix_s)?;
            new.iter().try_for_each(|commit| check_commit(repo, commit, &signers, now_unix_s))
        }
    }
}

fn check_commit(repo: &Repo, commit: &str, signers: &[Signer], now_unix_s: i64) -> Result<(), VerifyError> {
    let object = format!("the commit {commit}");
    match repo.signed_commit(commit, OBJECT_BYTES_MAX)? {
        None => Err(VerifyError::Unsigned { object }),
        Some(signed) => check_signature(object, &signed.signature, &signed.content, signers, now_unix_s),
    }
}

fn check_tag(
    repo: &Repo,
    resolved: &Resolved,
    reference: Option<&str>,
    signers: &[Signer],
    now_unix_s: i64,
) -> Result<(), VerifyError> {
    let name = resolved.name.clone().unwrap_or_default();
    let object = format!("the tag {name}");
    let Some(bytes) = reference.map(|reference| repo.tag_object(reference, OBJECT_BYTES_MAX)).transpose()?.flatten()
    else {
        return Err(VerifyError::Lightweight { object });
    };
    let text = String::from_utf8_lossy(&bytes);
    let header =
        |key: &str| text.lines().take_while(|l| !l.is_empty()).find_map(|l| l.strip_prefix(key)).map(str::to_owned);
    // A tag object says which name it was signed for: one for v1.0.0 must not pass for v2.0.0.
    let signed = header("tag ").unwrap_or_default();
    if signed != name {
        return Err(VerifyError::TagName { object: name, signed });
    }
    if header("object ").as_ref() != Some(&resolved.commit.id) {
        return Err(VerifyError::Malformed { object, cause: ssh_key::Error::FormatEncoding });
    }
    let Some((content, signature)) = split_armor(&bytes) else { return Err(VerifyError::Unsigned { object }) };
    check_signature(object, signature, content, signers, now_unix_s)
}

/// A tag's content and the signature at its end.
fn split_armor(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let armor = ARMOR.as_bytes();
    let starts = |at: usize| bytes[at..].starts_with(armor) && (at == 0 || bytes[at - 1] == b'\n');
    let at = (0..bytes.len().saturating_sub(armor.len())).rev().find(|at| starts(*at))?;
    Some(bytes.split_at(at))
}

fn check_signature(
    object: String,
    armored: &[u8],
    content: &[u8],
    signers: &[Signer],
    now_unix_s: i64,
) -> Result<(), VerifyError> {
    if !armored.starts_with(ARMOR.as_bytes()) {
        let kinds = [("-----BEGIN PGP ", "OpenPGP"), ("-----BEGIN SIGNED MESSAGE", "X.509")];
        let kind = kinds.iter().find(|(armor, _)| armored.starts_with(armor.as_bytes()));
        return Err(VerifyError::Foreign { object, kind: kind.map_or("something unknown", |(_, kind)| kind) });
    }
    let armored = armored.trim_ascii_end();
    let signature = match SshSig::from_pem(armored) {
        Ok(signature) => signature,
        Err(cause) => return Err(VerifyError::Malformed { object, cause }),
    };
    if signature.namespace() != NAMESPACE {
        return Err(VerifyError::Namespace { object, namespace: signature.namespace().to_owned() });
    }
    let allowed = |signer: &&Signer| {
        signer.key == *signature.public_key()
            && signer
                .namespaces
                .as_ref()
                .is_none_or(|all| all.iter().any(|pattern| matches_pattern(pattern, NAMESPACE)))
    };
    let known: Vec<&Signer> = signers.iter().filter(allowed).collect();
    let Some(first) = known.first() else {
        return Err(VerifyError::UnknownSigner {
            object,
            key: signature.public_key().fingerprint(HashAlg::Sha256).to_string(),
        });
    };
    let outside = |signer: &Signer| {
        let early = signer.valid_after.filter(|after| now_unix_s < *after).map(|_| "yet".to_owned());
        early.or_else(|| signer.valid_before.filter(|before| now_unix_s > *before).map(|_| "any more".to_owned()))
    };
    let Some(signer) = known.iter().find(|signer| outside(signer).is_none()) else {
        let when = outside(first).unwrap_or_default();
        return Err(VerifyError::Expired { object, principal: first.principal.clone(), when });
    };
    let principal = signer.principal.clone();
    let signed = SshSig::signed_data(NAMESPACE, signature.hash_alg(), content);
    let signed = match signed {
        Ok(signed) => signed,
        Err(cause) => return Err(VerifyError::Malformed { object, cause }),
    };
    match is_signature(&signature, &signed) {
        Some(true) => Ok(()),
        Some(false) => Err(VerifyError::Tampered { object, principal }),
        None => Err(VerifyError::KeyType { object, principal, kind: signature.algorithm().to_string() }),
    }
}

/// Whether the key of a signature made it over `signed`; `None` for a type of key that is not checked.
fn is_signature(signature: &SshSig, signed: &[u8]) -> Option<bool> {
    let (made, bytes) = (signature.signature().algorithm(), signature.signature_bytes());
    match signature.public_key() {
        KeyData::Ed25519(key) => {
            let good = UnparsedPublicKey::new(&ED25519, key.0).verify(signed, bytes).is_ok();
            Some(good && made == Algorithm::Ed25519)
        }
        KeyData::Rsa(key) => {
            let scheme = match made {
                Algorithm::Rsa { hash: Some(HashAlg::Sha512) } => &RSA_PKCS1_2048_8192_SHA512,
                Algorithm::Rsa { hash: Some(HashAlg::Sha256) } => &RSA_PKCS1_2048_8192_SHA256,
                // SHA-1, or not RSA at all.
                _ => return Some(false),
            };
            let (n, e) = (key.n.as_positive_bytes()?, key.e.as_positive_bytes()?);
            Some(RsaPublicKeyComponents { n, e }.verify(scheme, signed, bytes).is_ok())
        }
        KeyData::Ecdsa(key @ EcdsaPublicKey::NistP256(_)) => {
            let Some((raw, [])) = two_numbers(bytes, 32) else { return Some(false) };
            let good =
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.as_sec1_bytes()).verify(signed, &raw).is_ok();
            Some(good && made == Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 })
        }
        KeyData::Ecdsa(key @ EcdsaPublicKey::NistP384(_)) => {
            let Some((raw, [])) = two_numbers(bytes, 48) else { return Some(false) };
            let good =
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.as_sec1_bytes()).verify(signed, &raw).is_ok();
            Some(good && made == Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 })
        }
        KeyData::SkEd25519(key) => {
            let Some((raw, trailer)) = bytes.split_at_checked(64) else { return Some(false) };
            let Some(message) = by_device(key.application(), trailer, signed) else { return Some(false) };
            let good = UnparsedPublicKey::new(&ED25519, key.public_key().0).verify(&message, raw).is_ok();
            Some(good && made == Algorithm::SkEd25519)
        }
        KeyData::SkEcdsaSha2NistP256(key) => {
            let Some((raw, trailer)) = two_numbers(bytes, 32) else { return Some(false) };
            let Some(message) = by_device(key.application(), trailer, signed) else { return Some(false) };
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.ec_point().as_bytes());
            Some(key.verify(&message, &raw).is_ok() && made == Algorithm::SkEcdsaSha2NistP256)
        }
        _ => None,
    }
}

/// What a security key signs (OpenSSH's PROTOCOL.u2f): hashes with its flags and its counter, the `trailer` of the signature, in
/// between. `None`: nobody touched it, or the trailer is none.
fn by_device(application: &str, trailer: &[u8], signed: &[u8]) -> Option<Vec<u8>> {
    if trailer.len() != 5 || trailer[0] & 1 == 0 {
        return None;
    }
    let mut message = digest::digest(&digest::SHA256, application.as_bytes()).as_ref().to_vec();
    message.extend(trailer);
    message.extend(digest::digest(&digest::SHA256, signed).as_ref());
    Some(message)
}

/// An ECDSA signature of SSH (RFC 5656, section 3.1.2: two `mpint`s of RFC 4251) as two numbers of `width` bytes each, and what comes after it.
fn two_numbers(mut bytes: &[u8], width: usize) -> Option<(Vec<u8>, &[u8])> {
    let mut raw = Vec::with_capacity(2 * width);
    for _ in 0..2 {
        let (length, rest) = bytes.split_first_chunk()?;
        let (number, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        raw.resize(raw.len() + width.checked_sub(number.len())?, 0);
        raw.extend(number);
        bytes = rest;
    }
    Some((raw, bytes))
}

fn read_signers(path: &Path) -> Result<Vec<Signer>, VerifyError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|cause| VerifyError::Signers { path: shown.clone(), cause })?;
    parse_signers(&text).map_err(|(line, what)| VerifyError::SignersLine { path: shown, line, what })
}

fn parse_signers(text: &str) -> Result<Vec<Signer>, (usize, String)> {
    let mut signers = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        signers.push(parse_signer(line).map_err(|what| (number, what))?);
    }
    Ok(signers)
}

/// `PRINCIPALS [OPTIONS] TYPE KEY [COMMENT]`
fn parse_signer(line: &str) -> Result<Signer, String> {
    let (principal, rest) = word(line);
    if principal.is_empty() || rest.is_empty() {
        return Err("it names no key".to_owned());
    }
    let signer = |key: &str| {
        let key = PublicKey::from_openssh(key).map_err(|e| format!("the key cannot be read: {e}"))?;
        let (principal, key) = (principal.trim_matches('"').to_owned(), key.key_data().clone());
        Ok(Signer { principal, key, valid_after: None, valid_before: None, namespaces: None })
    };
    let is_key = |word: &str| ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| word.starts_with(kind));
    if is_key(rest) {
        return signer(rest);
    }
    let (options, key) = word(rest);
    let mut signer = signer(key)?;
    for option in split_options(options) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = value.trim_matches('"');
        match name.to_ascii_lowercase().as_str() {
            "namespaces" => signer.namespaces = Some(value.split(',').map(str::to_owned).collect()),
            "valid-after" => signer.valid_after = Some(timestamp(value)?),
            "valid-before" => signer.valid_before = Some(timestamp(value)?),
            "cert-authority" => return Err("certificates are not supported; list the keys themselves".to_owned()),
            _ => return Err(format!("the option `{name}` is not known")),
        }
    }
    Ok(signer)
}

/// The first word, where blanks within quotes are part of it, and what comes after it.
fn word(text: &str) -> (&str, &str) {
    let mut quoted = false;
    let end = text.find(|c: char| {
        quoted ^= c == '"';
        c.is_whitespace() && !quoted
    });
    end.map_or((text, ""), |end| (&text[..end], text[end..].trim_start()))
}

/// Splits at commas that are not within quotes.
fn split_options(text: &str) -> Vec<&str> {
    let mut quoted = false;
    text.split(|c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .filter(|option| !option.is_empty())
    .collect()
}

/// `YYYYMMDD[HHMM[SS]]`, with or without `Z`: in UTC either way, as a daemon's time zone is nobody's.
fn timestamp(text: &str) -> Result<i64, String> {
    let bad = || format!("`{text}` is no time of the form YYYYMMDD or YYYYMMDDHHMM[SS], which is taken as UTC");
    let digits = text.strip_suffix('Z').unwrap_or(text);
    if !digits.bytes().all(|b| b.is_ascii_digit()) || !matches!(digits.len(), 8 | 12 | 14) {
        return Err(bad());
    }
    let part = |from: usize, to: usize| digits.get(from..to).map_or(Ok(0), |p| p.parse::<i64>().map_err(|_| bad()));
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60
    {
        return Err(bad());
    }
    // Howard Hinnant's days_from_civil (https://howardhinnant.github.io/date_algorithms.html), for years from 1970.
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted / 400, shifted % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Ok(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// ssh's patterns: `*`, `?`, and a leading `!` that never matches here.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    match (pattern.as_bytes(), text.as_bytes()) {
        ([], []) => true,
        ([b'*', ..], _) => {
            matches_pattern(&pattern[1..], text) || (!text.is_empty() && matches_pattern(pattern, &text[1..]))
        }
        ([b'?', ..], [_, ..]) => matches_pattern(&pattern[1..], &text[1..]),
        ([p, ..], [t, ..]) if p == t => matches_pattern(&pattern[1..], &text[1..]),
        _ => false,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use ssh_key::Signature;
    use ssh_key::public::{Ed25519PublicKey, SkEcdsaSha2NistP256, SkEd25519};

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    /// A security key signs, as PROTOCOL.u2f says: `touched` or not.
    fn device(key: KeyData, algorithm: Algorithm, touched: bool, sign: impl Fn(&[u8]) -> Vec<u8>) -> SshSig {
        let trailer = [u8::from(touched), 0, 0, 0, 7];
        let hash = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes).as_ref().to_vec();
        let raw = sign(&[hash(b"ssh:"), trailer.to_vec(), hash(b"content")].concat());
        let signature = Signature::new(algorithm, [raw, trailer.to_vec()].concat()).unwrap();
        SshSig::new(key, NAMESPACE, HashAlg::Sha512, signature).unwrap()
    }

    #[test]
    fn security_keys_sign_when_somebody_touches_them() {
        let random = SystemRandom::new();
        let ed25519 = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
        let public = Ed25519PublicKey(ed25519.public_key().as_ref().try_into().unwrap());
        let of_ed25519 = KeyData::SkEd25519(SkEd25519::new(public, "ssh:"));

        let scheme = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(scheme, &random).unwrap();
        let ecdsa = EcdsaKeyPair::from_pkcs8(scheme, pkcs8.as_ref(), &random).unwrap();
        let EcdsaPublicKey::NistP256(point) = EcdsaPublicKey::from_sec1_bytes(ecdsa.public_key().as_ref()).unwrap()
        else {
            panic!("the key is one of P-256")
        };
        let of_ecdsa = KeyData::SkEcdsaSha2NistP256(SkEcdsaSha2NistP256::new(point, "ssh:"));
        // Two numbers as `mpint`s: without leading zeros, and with one where the first bit would be a sign.
        let numbers = |raw: &[u8]| -> Vec<u8> {
            let number = |fixed: &[u8]| {
                let first = fixed.iter().position(|byte| *byte != 0).unwrap();
                let sign = if fixed[first] >= 0x80 { vec![0] } else { vec![] };
                let number = [&sign, &fixed[first..]].concat();
                [u32::try_from(number.len()).unwrap().to_be_bytes().to_vec(), number].concat()
            };
            raw.chunks(32).flat_map(number).collect()
        };
        let by_ed25519 = |message: &[u8]| ed25519.sign(message).as_ref().to_vec();
        let by_ecdsa = |message: &[u8]| numbers(ecdsa.sign(&random, message).unwrap().as_ref());
        for touched in [true, false] {
            // Leading zeros come once in 128 signatures or so.
            for _ in 0..if touched { 600 } else { 1 } {
                let signature = device(of_ecdsa.clone(), Algorithm::SkEcdsaSha2NistP256, touched, by_ecdsa);
                assert_eq!(is_signature(&signature, b"content"), Some(touched));
                assert_eq!(is_signature(&signature, b"other"), Some(false));
            }
            let signature = device(of_ed25519.clone(), Algorithm::SkEd25519, touched, by_ed25519);
            assert_eq!(is_signature(&signature, b"content"), Some(touched));
            assert_eq!(is_signature(&signature, b"other"), Some(false));
        }
    }

    #[test]
    fn allowed_signers_are_read_with_their_options() {
        let text = format!(
            "# team\n\nada@example.org,bob@example.org {KEY} a comment\n\
             carol@example.org namespaces=\"git,file\",valid-after=\"20260101\",valid-before=\"20270101Z\" {KEY}\n\
             \"dan the man\" valid-before=202601021530 {KEY}\n"
        );
        let signers = parse_signers(&text).unwrap();
        let shown: Vec<_> = signers.iter().map(|s| (s.principal.as_str(), s.valid_after, s.valid_before)).collect();
        let expected = [
            ("ada@example.org,bob@example.org", None, None),
            ("carol@example.org", Some(1_767_225_600), Some(1_798_761_600)),
            ("dan the man", None, Some(1_767_367_800)),
        ];
        assert_eq!(shown, expected);
        assert_eq!(signers[1].namespaces.as_deref(), Some(["git".to_owned(), "file".to_owned()].as_slice()));
    }

    #[test]
    fn a_line_that_cannot_be_used_is_named() {
        let check = |line: &str, expected: &str| {
            let (number, what) = parse_signers(&format!("# one\n{line}\n")).unwrap_err();
            assert_eq!(number, 2);
            assert!(what.contains(expected), "{line}: {what}");
        };
        check("ada", "names no key");
        check("ada ssh-ed25519 AAAA", "the key cannot be read");
        check(&format!("ada cert-authority {KEY}"), "certificates are not supported");
        check(&format!("ada no-touch {KEY}"), "the option `no-touch` is not known");
        check(&format!("ada valid-after=\"2026\" {KEY}"), "is no time");
        check(&format!("ada valid-after=\"20261301\" {KEY}"), "is no time");
    }

    #[test]
    fn namespaces_match_as_patterns() {
        for (pattern, expected) in
            [("git", true), ("*", true), ("g?t", true), ("gi*", true), ("file", false), ("", false)]
        {
            assert_eq!(matches_pattern(pattern, "git"), expected, "{pattern}");
        }
    }

    #[test]
    fn the_last_signature_of_a_tag_is_split_off() {
        let (content, signature) = split_armor(b"object x\n\n-----BEGIN SSH SIGNATURE-----\nx").unwrap();
        assert_eq!(content, b"object x\n\n");
        assert!(signature.starts_with(ARMOR.as_bytes()));
        assert!(split_armor(b"quoted: -----BEGIN SSH SIGNATURE-----\n").is_none());
        assert!(split_armor(b"").is_none());
    }
}
