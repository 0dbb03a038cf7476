//! Futures in pooled memory.
//!
//! An exchange's future takes kilobytes and lives for milliseconds; an idle connection's armed
//! receive needs a type that can be named. Both are put into blocks from a freelist of this
//! thread: no allocation under load, and a connection that becomes idle gives its block back.
//!
//! Blocks are classed by size in steps of 128 bytes; a future larger than the largest class (16 KB)
//! is allocated and freed each time.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

const STEP_BYTES: usize = 128;
const CLASSES: usize = 128;
const ALIGN: usize = 128;
/// Free blocks kept per class and core.
const KEPT_MAX: usize = 1024;

thread_local! {
    // Blocks of memory by class, which must be freed by hand: no `FreeList` of values, and no
    // `Buffers`, whose vectors are not aligned for a future.
    static FREE: RefCell<Vec<Vec<NonNull<u8>>>> = RefCell::new(vec![Vec::new(); CLASSES]);
}

/// A future of any type in a pooled block; awaiting this gives that future's output.
pub struct PooledFuture<'a, T> {
    block: NonNull<u8>,
    class: usize,
    // SAFETY: both are called with `block` alone, which holds the type they were made for.
    poll: unsafe fn(NonNull<u8>, &mut Context<'_>) -> Poll<T>,
    drop: unsafe fn(NonNull<u8>),
    // The future may borrow for 'a, and is neither Send nor Sync.
    _future: PhantomData<(&'a (), *mut T)>,
}

impl<'a, T> PooledFuture<'a, T> {
    /// Moves a future into a pooled block.
    pub fn new<F: Future<Output = T> + 'a>(future: F) -> Self {
        Self::with(move || future)
    }

    /// As `new`, but makes the future in its block, so that a large one need not be moved there.
    #[inline]
    pub fn with<F: Future<Output = T> + 'a>(make: impl FnOnce() -> F) -> Self {
        const { assert!(align_of::<F>() <= ALIGN) };
        let class = size_of::<F>().div_ceil(STEP_BYTES).max(1);
        let block = take(class);
        // SAFETY: the block is at least `class * STEP_BYTES >= size_of::<F>()` bytes, aligned
        // to ALIGN >= align_of::<F>(), and nobody else holds it.
        unsafe { block.cast::<F>().write(make()) };
        Self { block, class, poll: poll_as::<F>, drop: drop_as::<F>, _future: PhantomData }
    }
}

impl<T> Future for PooledFuture<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // SAFETY: `poll` was made for the type that `new` wrote into `block`.
        unsafe { (self.poll)(self.block, cx) }
    }
}

impl<T> Drop for PooledFuture<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the future is live until here and not used after.
        unsafe { (self.drop)(self.block) };
        give_back(self.block, self.class);
    }
}

// The block does not move when the PooledFuture does.
impl<T> Unpin for PooledFuture<'_, T> {}

/// A future of type `F` in place, or any other future in a pooled block: the common case is polled
/// without an indirect call, and its size does not grow with the other futures.
pub enum OrPooled<F: Future> {
    /// A future of the common type, in place.
    Bare(F),
    /// A future of any other type.
    Pooled(PooledFuture<'static, F::Output>),
}

impl<F: Future> Future for OrPooled<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: a bare future is not moved out of the pinned enum, which has no Drop of its own.
        match unsafe { self.get_unchecked_mut() } {
            // SAFETY: see above.
            Self::Bare(future) => unsafe { Pin::new_unchecked(future) }.poll(cx),
            Self::Pooled(future) => Pin::new(future).poll(cx),
        }
    }
}

/// SAFETY: `block` holds a live `F` that is never moved until it is dropped.
unsafe fn poll_as<F: Future>(block: NonNull<u8>, cx: &mut Context<'_>) -> Poll<F::Output> {
    // SAFETY: see above; the block is the future's final place, so it is pinned.
    unsafe { Pin::new_unchecked(block.cast::<F>().as_mut()) }.poll(cx)
}

/// SAFETY: `block` holds a live `F` that is not used afterwards.
unsafe fn drop_as<F>(block: NonNull<u8>) {
    // SAFETY: see above.
    unsafe { block.cast::<F>().drop_in_place() };
}

fn layout(class: usize) -> Layout {
    Layout::from_size_align(class * STEP_BYTES, ALIGN).expect("a class is far below isize::MAX")
}

fn take(class: usize) -> NonNull<u8> {
    let kept = FREE.with(|free| free.borrow_mut().get_mut(class).and_then(Vec::pop));
    kept.unwrap_or_else(|| {
        // SAFETY: the layout has a size above zero, since classes begin at 1.
        let block = unsafe { alloc(layout(class)) };
        NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout(class)))
    })
}

fn give_back(block: NonNull<u8>, class: usize) {
    // `try_with`: a pooled future may be dropped while the thread's own storage is being torn down.
    let kept = FREE.try_with(|free| match free.borrow_mut().get_mut(class) {
        Some(blocks) if blocks.len() < KEPT_MAX => {
            blocks.push(block);
            true
        }
        _ => false,
    });
    if kept != Ok(true) {
        // SAFETY: the block came from `alloc` with this very layout.
        unsafe { dealloc(block.as_ptr(), layout(class)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::race::poll_idle;
    use std::pin::pin;
    use std::rc::Rc;

    #[test]
    fn awaits_to_the_output_and_reuses_the_block() {
        let first = PooledFuture::new(async { 7 });
        let block = first.block;
        assert_eq!(poll_idle(pin!(first)), Poll::Ready(7));
        let second = PooledFuture::new(async { 8 });
        assert_eq!(second.block, block);
    }

    #[test]
    fn bare_or_framed_is_the_same() {
        let bare = async { 7 };
        assert_eq!(poll_idle(pin!(OrPooled::Bare(bare))), Poll::Ready(7));
        let pooled = PooledFuture::new(async { 8 });
        let pooled = OrPooled::<std::future::Ready<i32>>::Pooled(pooled);
        assert_eq!(poll_idle(pin!(pooled)), Poll::Ready(8));
    }

    #[test]
    fn drops_what_the_future_holds() {
        let token = Rc::new(());
        let held = token.clone();
        let big = [0u8; 40_000];
        let future = PooledFuture::new(async move {
            let _held = held;
            std::future::pending::<()>().await;
            big.len()
        });
        assert_eq!(Rc::strong_count(&token), 2);
        drop(future);
        assert_eq!(Rc::strong_count(&token), 1);
    }
}
