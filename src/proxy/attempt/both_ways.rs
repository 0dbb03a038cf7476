//! Request and answer at once: polls the two directions of an attempt, and watches the client.
//!
//! ```text
//! both under way ─ request sent ──▶ the answer alone ─ answer over ──▶ over
//!        │
//!        └─ answer over ─▶ over when the client has been answered or bytes of the request are lost;
//!                          else the upload is told to stop, and ends
//! ```

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::Kind;
use crate::net::stream::Stream;
use crate::net::sys::Shut;
use crate::net::ticker::Timer;
use crate::net::watch::Watch;
use crate::proxy::download::Downloaded;
use crate::proxy::progress::Progress;
use crate::proxy::upload::{Sent, Uploaded};

/// How far the two directions of an attempt are.
pub(super) struct BothWays<'w> {
    client: &'w Stream,
    upstream: &'w Stream,
    progress: &'w Progress,
    /// What the upload has come to.
    uploaded: Option<Sent>,
    /// What the download has come to.
    downloaded: Option<Downloaded>,
    /// The client has left.
    client_gone: bool,
    /// The upload waited for the upstream when it was last polled.
    upload_waited: bool,
}

/// What follows a poll of the download.
enum After {
    /// The upload is polled again: it may wait for what the download has just set.
    Upload,
    /// Both directions are over, or the upload alone is left and is ended by the attempt.
    Over,
    /// Nothing can be done now.
    Wait,
}

impl<'w> BothWays<'w> {
    pub(super) fn new(client: &'w Stream, upstream: &'w Stream, progress: &'w Progress) -> Self {
        let (uploaded, downloaded) = (None, None);
        let (client_gone, upload_waited) = (false, true);
        Self { client, upstream, progress, uploaded, downloaded, client_gone, upload_waited }
    }

    /// Polls both directions until the answer is over and the upload has ended, or must be ended.
    #[inline]
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut upload: Pin<&mut impl Future<Output = Sent>>,
        mut download: Pin<&mut impl Future<Output = Downloaded>>,
        watch: &mut Watch,
        watch_timer: &Timer,
    ) -> Poll<()> {
        loop {
            self.poll_upload(cx, upload.as_mut());
            match self.poll_download(cx, download.as_mut()) {
                After::Upload => {}
                After::Over => return Poll::Ready(()),
                After::Wait => {
                    self.watch_client(cx, watch, watch_timer);
                    return Poll::Pending;
                }
            }
        }
    }

    /// What both directions have come to; the upload is `None` where it goes on.
    pub(super) fn end(self) -> (Option<Sent>, Downloaded) {
        let downloaded = match self.client_gone {
            true => Downloaded::Truncated(Kind::ClientGone),
            false => self.downloaded.unwrap_or(Downloaded::Truncated(Kind::Internal)),
        };
        (self.uploaded, downloaded)
    }

    #[inline]
    fn poll_upload(&mut self, cx: &mut Context<'_>, upload: Pin<&mut impl Future<Output = Sent>>) {
        if self.uploaded.is_none()
            && let Poll::Ready(sent) = upload.poll(cx)
        {
            if matches!(sent.end, Uploaded::Broken(_)) {
                self.upstream.shutdown(Shut::Both);
            }
            self.uploaded = Some(sent);
        }
    }

    #[inline]
    fn poll_download(
        &mut self,
        cx: &mut Context<'_>,
        download: Pin<&mut impl Future<Output = Downloaded>>,
    ) -> After {
        let had_begun = self.progress.answer_begun.get();
        if self.downloaded.is_none()
            && let Poll::Ready(end) = download.poll(cx)
            && let Some(after) = self.answer_over(end)
        {
            return after;
        }
        if self.uploaded.is_none() && had_begun != self.progress.answer_begun.get() {
            return After::Upload;
        }
        match self.uploaded.is_some() && self.downloaded.is_some() {
            true => After::Over,
            false => After::Wait,
        }
    }

    /// Notes how the answer ended; tells what follows where the client is still sending.
    #[inline]
    fn answer_over(&mut self, end: Downloaded) -> Option<After> {
        let sending = self.uploaded.is_none();
        let alive = matches!(end, Downloaded::Upgraded(_) | Downloaded::Whole { .. });
        if !alive || sending {
            self.upstream.shutdown(Shut::Both);
        }
        let no_answer = matches!(end, Downloaded::NoAnswer { .. } | Downloaded::Elsewhere { .. });
        self.downloaded = Some(end);
        // The send of a request that is all here ends by itself.
        if !sending || self.progress.body_received.get() {
            return None;
        }
        if !no_answer || self.progress.gone.get() {
            return Some(After::Over);
        }
        self.progress.stop.set(true);
        Some(After::Upload)
    }

    /// Watches the client, while nobody reads from it: when it has left, both sockets are shut
    /// down, and what is in flight ends.
    #[inline]
    fn watch_client(&mut self, cx: &mut Context<'_>, watch: &mut Watch, timer: &Timer) {
        let waits = self.progress.upload_waits.get();
        if std::mem::replace(&mut self.upload_waited, waits) && !waits {
            // What the watch knows of unread bytes may no longer be true.
            watch.received();
        }
        if !self.client_gone
            && self.downloaded.is_none()
            && (waits || self.progress.body_received.get())
            && watch.poll_gone(cx, timer).is_ready()
        {
            self.client_gone = true;
            self.upstream.shutdown(Shut::Both);
            self.client.shutdown(Shut::Both);
        }
    }
}
