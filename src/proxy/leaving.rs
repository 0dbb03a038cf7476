//! HTTP/2 connections to wake when their core drains.
//!
//! An HTTP/1.1 connection is ended by the ticker or by its next answer. One of HTTP/2 has to send
//! GOAWAY, so its task must run: it leaves its waker here.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Waker;

/// The wakers of one core's HTTP/2 connections.
#[derive(Default)]
pub struct Leaving {
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
}

/// A place in the list, for as long as the connection lives.
pub struct Enrolled {
    leaving: Rc<Leaving>,
    index: usize,
}

impl Leaving {
    /// Takes a place in the list; its waker is set later, by `wake_by`.
    #[must_use]
    pub fn enroll(self: &Rc<Self>) -> Enrolled {
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut wakers = self.wakers.borrow_mut();
            wakers.push(None);
            wakers.len() - 1
        });
        Enrolled { leaving: self.clone(), index }
    }

    /// Wakes every connection that has left a waker.
    pub fn wake(&self) {
        self.wakers.borrow().iter().flatten().for_each(Waker::wake_by_ref);
    }
}

impl Enrolled {
    /// Stores the waker of the connection's task.
    pub fn wake_by(&self, waker: &Waker) {
        if let Some(place) = self.leaving.wakers.borrow_mut().get_mut(self.index)
            && !place.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            *place = Some(waker.clone());
        }
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        if let Some(place) = self.leaving.wakers.borrow_mut().get_mut(self.index) {
            *place = None;
        }
        self.leaving.free.borrow_mut().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let leaving = Rc::new(Leaving::default());
        for _ in 0..100 {
            leaving.enroll().wake_by(Waker::noop());
        }
        assert_eq!(leaving.wakers.borrow().len(), 1);
        assert!(leaving.wakers.borrow()[0].is_none());
    }
}
