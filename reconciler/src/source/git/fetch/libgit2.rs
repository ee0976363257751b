//! Fetching by libgit2, over transports of our own.
//!
//! libgit2 speaks git's protocol and writes the pack; the bytes come by [`super::http`] and [`super::ssh`], so that TLS roots,
//! known hosts, credentials and time limits are ours and each credential is shown once.

use std::sync::{Arc, Mutex};

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream, Transport};
use git2::{AutotagOption, Direction, ErrorClass, ErrorCode, FetchOptions, RemoteCallbacks};

use super::super::spec::Url;
use super::{Choose, Fetch, FetchError, FetchErrorKind, RemoteRef, Request, child, http, ssh, too_large};

/// Packs are read through windows: with the limit on memory, small ones.
const WINDOW_BYTES: usize = 16 << 20;
const WINDOWS_BYTES_MAX: usize = 256 << 20;

pub(super) struct Libgit2;

/// Where a transport leaves what went wrong: libgit2 itself only carries a text on.
pub(super) type Failure = Arc<Mutex<Option<FetchError>>>;

impl Fetch for Libgit2 {
    fn fetch(&self, request: &Request, choose: &mut Choose<'_>) -> Result<(), FetchError> {
        let failure = Failure::default();
        let failed = |e: &git2::Error| {
            let told = failure.lock().ok().and_then(|mut told| told.take());
            told.unwrap_or_else(|| words(request, e))
        };
        register(request, &failure).map_err(|e| failed(&e))?;
        let mirror = child::open(&request.mirror)?;
        let mut remote = mirror.remote_anonymous(&address(&request.url)).map_err(|e| failed(&e))?;
        remote.connect(Direction::Fetch).map_err(|e| failed(&e))?;
        let list = remote.list().map_err(|e| failed(&e))?;
        let list: Vec<_> =
            list.iter().map(|head| RemoteRef { name: head.name().to_owned(), id: head.oid().to_string() }).collect();
        let refspecs = choose(&list)?;
        if refspecs.is_empty() {
            return Ok(());
        }
        let mut over = false;
        let mut callbacks = RemoteCallbacks::new();
        callbacks.transfer_progress(|progress| {
            over = progress.received_bytes() as u64 > request.transfer_bytes_max;
            !over
        });
        let mut options = FetchOptions::new();
        options.remote_callbacks(callbacks).download_tags(AutotagOption::None).update_fetchhead(false);
        let fetched = remote.fetch(&refspecs, Some(&mut options), None);
        drop(options);
        fetched.map_err(|e| if over { too_large(request) } else { failed(&e) })
    }
}

/// What libgit2 is told; it only takes the scheme from it, except for a local path.
fn address(url: &Url) -> String {
    match url {
        Url::Https { rest } => format!("https://{rest}"),
        Url::Ssh { .. } => "ssh://server/repository".to_owned(),
        Url::Local(path) => path.display().to_string(),
    }
}

fn register(request: &Request, failure: &Failure) -> Result<(), git2::Error> {
    // SAFETY: this process has one thread and has made no transport yet.
    unsafe {
        git2::opts::set_mwindow_size(WINDOW_BYTES)?;
        git2::opts::set_mwindow_mapped_limit(WINDOWS_BYTES_MAX)?;
        let stateless = matches!(request.url, Url::Https { .. });
        let (request, failure) = (request.clone(), Arc::clone(failure));
        git2::transport::register(if stateless { "https" } else { "ssh" }, move |remote| {
            let opener = Opener { request: request.clone(), failure: Arc::clone(&failure) };
            Transport::smart(remote, stateless, opener)
        })
    }
}

/// Opens connections for libgit2.
struct Opener {
    request: Request,
    failure: Failure,
}

impl SmartSubtransport for Opener {
    fn action(&self, _: &str, action: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let posts = match action {
            Service::UploadPackLs => false,
            Service::UploadPack => true,
            Service::ReceivePackLs | Service::ReceivePack => {
                return Err(git2::Error::from_str("wayleave never pushes"));
            }
        };
        let opened: Result<Box<dyn SmartSubtransportStream>, FetchError> = match &self.request.url {
            Url::Https { rest } => http::Stream::new(&self.request, rest, posts, Arc::clone(&self.failure))
                .map(|stream| Box::new(stream) as _),
            Url::Ssh { .. } => {
                ssh::Stream::open(&self.request, Arc::clone(&self.failure)).map(|stream| Box::new(stream) as _)
            }
            Url::Local(_) => Err(FetchError::local("a local repository needs no transport")),
        };
        opened.map_err(|error| {
            let text = error.message.clone();
            tell(&self.failure, error);
            git2::Error::new(ErrorCode::GenericError, ErrorClass::Net, text)
        })
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// Notes the first thing that went wrong; gives it back as what a stream reports.
pub(super) fn tell(failure: &Failure, error: FetchError) -> std::io::Error {
    let text = error.message.clone();
    if let Ok(mut told) = failure.lock() {
        told.get_or_insert(error);
    }
    std::io::Error::other(text)
}

/// An error of libgit2 itself.
fn words(request: &Request, error: &git2::Error) -> FetchError {
    let (url, text) = (&request.url, error.message().trim().to_owned());
    let kind = match (error.class(), error.code()) {
        (_, ErrorCode::Owner) => {
            let message = format!(
                "{url} belongs to another user; if you trust it, say `git config --system --add safe.directory {url}`"
            );
            return FetchError::new(FetchErrorKind::Local, message);
        }
        (ErrorClass::NoMemory, _) => {
            let message = format!("what {url} sends needs more memory than a fetch may take");
            return FetchError::new(FetchErrorKind::TooLarge, message);
        }
        (_, ErrorCode::NotFound) if matches!(request.url, Url::Local(_)) => FetchErrorKind::NotFound,
        (ErrorClass::Os | ErrorClass::Filesystem, _) => FetchErrorKind::Local,
        _ => FetchErrorKind::Server,
    };
    FetchError::new(kind, format!("{url}: {text}"))
}
