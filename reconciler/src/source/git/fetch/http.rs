//! git's smart HTTP over TLS: one GET, then POSTs, each with its own time limits.
//!
//! Redirects are not followed: a token must not go where nobody meant it to go.

use std::io::{self, Read, Write};
use std::time::Instant;

use ureq::http::header::AUTHORIZATION;
use ureq::{Agent, Body, BodyReader, Timeout};

use super::libgit2::{Failure, tell};
use super::{FetchError, FetchErrorKind, Request, child};
use crate::tls::trusting;

/// One request and its answer; the request is sent when the answer is asked for.
pub(super) struct Stream {
    request: Request,
    agent: Agent,
    authorization: Option<String>,
    /// Without a scheme.
    rest: String,
    /// What to post; `None` gets the references.
    body: Option<Vec<u8>>,
    answer: Option<BodyReader<'static>>,
    failure: Failure,
}

impl Stream {
    pub(super) fn new(request: &Request, rest: &str, posts: bool, failure: Failure) -> Result<Self, FetchError> {
        let trusted = trusting(request.credentials.ca_file.as_deref());
        let tls = trusted.map_err(|error| FetchError::new(FetchErrorKind::Identity, error.to_string()))?;
        let agent = Agent::config_builder()
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .tls_config(tls)
            .user_agent(concat!("git/wayleave-", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(request.connect_timeout))
            .timeout_resolve(Some(request.connect_timeout))
            .timeout_global(Some(request.timeout))
            .build()
            .new_agent();
        let authorization = match &request.credentials.token_file {
            Some(file) => {
                let user = request.credentials.username.as_deref().unwrap_or("git");
                Some(format!("Basic {}", base64(format!("{user}:{}", child::secret(file)?).as_bytes())))
            }
            None => None,
        };
        let body = posts.then(Vec::new);
        let (request, rest) = (request.clone(), rest.to_owned());
        Ok(Self { request, agent, authorization, rest, body, answer: None, failure })
    }

    fn send(&mut self) -> Result<BodyReader<'static>, FetchError> {
        let begun = Instant::now();
        let sent = match &self.body {
            None => {
                let request = self.agent.get(format!("https://{}/info/refs?service=git-upload-pack", self.rest));
                let request = match &self.authorization {
                    Some(value) => request.header(AUTHORIZATION, value),
                    None => request,
                };
                request.call()
            }
            Some(body) => {
                let request = self.agent.post(format!("https://{}/git-upload-pack", self.rest));
                let request = match &self.authorization {
                    Some(value) => request.header(AUTHORIZATION, value),
                    None => request,
                };
                request
                    .header("Content-Type", "application/x-git-upload-pack-request")
                    .header("Accept", "application/x-git-upload-pack-result")
                    .send(body.as_slice())
            }
        };
        let url = &self.request.url;
        let answer = sent.map_err(|e| self.unsent(&e, begun))?;
        let status = answer.status().as_u16();
        let error = |kind, message: String| Err(FetchError::new(kind, message));
        match status {
            200 => {}
            401 | 403 => {
                let why = match &self.request.credentials.token_file {
                    Some(file) => format!("the token in {}", file.display()),
                    None => "a reader without a token; `auth.tokenFile` names one".to_owned(),
                };
                return error(FetchErrorKind::Credentials, format!("{url} refused {why} (status {status})"));
            }
            404 | 410 => return error(FetchErrorKind::NotFound, format!("{url} is not there (status {status})")),
            300..=399 => {
                let place = answer.headers().get("location").and_then(|place| place.to_str().ok()).unwrap_or_default();
                let place = place.split('?').next().unwrap_or_default();
                let place = place.strip_suffix("/info/refs").unwrap_or(place);
                let message = format!("{url} has moved to `{place}`; redirects are not followed, so write that URL");
                return error(FetchErrorKind::Server, message);
            }
            _ => return error(FetchErrorKind::Server, format!("{url} answered with status {status}")),
        }
        let wanted = if self.body.is_some() { "-result" } else { "-advertisement" };
        let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind != format!("application/x-git-upload-pack{wanted}") {
            return error(FetchErrorKind::Server, format!("{url} is no git repository: it sends `{kind}`"));
        }
        let body: Body = answer.into_body();
        Ok(body.into_with_config().limit(self.request.transfer_bytes_max).reader())
    }

    fn unsent(&self, error: &ureq::Error, begun: Instant) -> FetchError {
        let url = &self.request.url;
        let seconds = begun.elapsed().as_secs_f32();
        match error {
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => FetchError::new(
                FetchErrorKind::Timeout,
                format!("{url} could not be connected to within {seconds:.1} s"),
            ),
            ureq::Error::Timeout(_) => {
                FetchError::new(FetchErrorKind::Timeout, format!("{url} did not answer within {seconds:.1} s"))
            }
            ureq::Error::Rustls(rustls::Error::InvalidCertificate(why)) => {
                FetchError::new(FetchErrorKind::Identity, format!("the certificate of {url} is not trusted: {why}"))
            }
            ureq::Error::Io(e) if is_certificate(e) => {
                FetchError::new(FetchErrorKind::Identity, format!("the certificate of {url} is not trusted: {e}"))
            }
            other => FetchError::new(FetchErrorKind::Server, format!("{url}: {other}")),
        }
    }
}

fn is_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut answer = match self.answer.take() {
            Some(answer) => answer,
            None => self.send().map_err(|error| tell(&self.failure, error))?,
        };
        let read = answer.read(buffer).map_err(|e| {
            let url = &self.request.url;
            let inner = e.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
            let error = match inner {
                Some(ureq::Error::BodyExceedsLimit(_)) => super::too_large(&self.request),
                Some(ureq::Error::Timeout(_)) => {
                    let seconds = self.request.timeout.as_secs_f64();
                    FetchError::new(FetchErrorKind::Timeout, format!("{url} did not deliver within {seconds} s"))
                }
                _ => FetchError::new(FetchErrorKind::Server, format!("{url}: the connection broke: {e}")),
            };
            tell(&self.failure, error)
        })?;
        self.answer = Some(answer);
        Ok(read)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.body {
            Some(body) => body.extend_from_slice(bytes),
            None => return Err(io::Error::other("nothing is sent with this request")),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| char::from(DIGITS[(bits & 63) as usize]);
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let four = [digit(bits >> 18), digit(bits >> 12), digit(bits >> 6), digit(bits)];
        text.extend(&four[..=group.len()]);
        text.extend(std::iter::repeat_n('=', 3 - group.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        // The test vectors of section 10.
        let check = |text: &str, expected: &str| assert_eq!(base64(text.as_bytes()), expected);
        check("", "");
        check("f", "Zg==");
        check("fo", "Zm8=");
        check("foo", "Zm9v");
        check("foob", "Zm9vYg==");
        check("fooba", "Zm9vYmE=");
        check("foobar", "Zm9vYmFy");
    }
}
