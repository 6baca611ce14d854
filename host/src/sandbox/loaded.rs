//! Programs by their code: controllers with the same component share it, and it is made once for all who wait.
//!
//! Invariant: `equal_components_are_made_once_and_shared`, held by `tests/sandbox.rs`.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Error, idle::Code};

/// What is loaded, held weakly: the last user unloads it.
#[derive(Default)]
pub(super) struct Loaded(Mutex<HashMap<String, Arc<Slot>>>);

struct Slot {
    /// One permit: to make the program.
    maker: Semaphore,
    code: Mutex<Weak<Code>>,
}

impl Loaded {
    /// The program called `name`; made by `make` unless somebody has it or makes it already. `make` may find that it
    /// cannot be made so, which is `None`.
    pub(super) async fn get_or_make(
        &self,
        name: &str,
        make: impl Future<Output = Result<Option<Arc<Code>>, Error>>,
    ) -> Result<Option<Arc<Code>>, Error> {
        let slot = self.slot(name);
        let closed = |_| Error::Host("the sandbox is closed".to_owned());
        let _permit = slot.maker.acquire().await.map_err(closed)?;
        if let Some(code) = slot.held() {
            return Ok(Some(code));
        }
        let Some(code) = make.await? else { return Ok(None) };
        *slot.code.lock() = Arc::downgrade(&code);
        Ok(Some(code))
    }

    fn slot(&self, name: &str) -> Arc<Slot> {
        let mut slots = self.0.lock();
        slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.held().is_some());
        let empty = || Arc::new(Slot { maker: Semaphore::new(1), code: Mutex::default() });
        slots.entry(name.to_owned()).or_insert_with(empty).clone()
    }
}

impl Slot {
    fn held(&self) -> Option<Arc<Code>> {
        self.code.lock().upgrade()
    }
}
