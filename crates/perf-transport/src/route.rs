//! Where messages go, remembered by the threads that send.

use crate::names::Name;
use crate::shell::link::Peer;
use std::cell::RefCell;
use std::sync::Arc;

/// Routes that a thread remembers: a few names for each peer of a usual cluster. A power of two.
const ROUTES_MAX: usize = 64;

/// A peer and a name, looked up.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// Which transport of this process, and the generation of its peers.
    pub(crate) era: Era,
    pub(crate) peer: Arc<Peer>,
    pub(crate) name: Arc<Name>,
    pub(crate) number: u16,
}

/// While this is the same, a peer's id stands for the same peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Era {
    pub(crate) transport: u64,
    pub(crate) generation: u64,
}

/// What a message says of where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address<'a> {
    pub(crate) target: u64,
    pub(crate) service: &'a str,
    pub(crate) method: &'a str,
}

impl Address<'_> {
    /// Where its route is kept. The same name at another place in memory only costs another place here: contents
    /// decide.
    #[inline]
    fn place(&self) -> usize {
        let text = self.method.as_ptr().addr() as u64 ^ (self.service.len() as u64) << 32;
        let mixed = (self.target ^ text.rotate_left(20)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 58) as usize % ROUTES_MAX
    }
}

#[derive(Debug)]
struct Routes {
    places: Vec<Option<Route>>,
    era: Option<Era>,
}

thread_local! {
    static ROUTES: RefCell<Routes> = const {
        RefCell::new(Routes { places: Vec::new(), era: None })
    };
}

/// Calls `act` with the thread's route to an address, if it has one. `None` if not, or while the thread changes its
/// routes.
#[inline]
pub(crate) fn with<R>(era: Era, address: Address<'_>, act: impl FnOnce(&Route) -> R) -> Option<R> {
    let known = ROUTES.try_with(|routes| {
        // Only shared while `act` runs: what it calls may send too.
        let routes = routes.try_borrow().ok()?;
        let route = routes.places.get(address.place())?.as_ref()?;
        let is_it = route.era == era
            && route.peer.id == address.target
            && route.name.is(address.service, address.method);
        is_it.then(|| act(route))
    });
    known.ok().flatten()
}

/// Remembers a route, in the place of another one.
pub(crate) fn remember(address: Address<'_>, route: Route) {
    // A thread that ends, or is about to use its routes, remembers nothing.
    let _ = ROUTES.try_with(|routes| {
        let Ok(mut routes) = routes.try_borrow_mut() else {
            return;
        };
        if routes.places.is_empty() {
            routes.places.resize_with(ROUTES_MAX, || None);
        }
        // Peers have come or gone since: those that are gone are kept no longer.
        if routes.era.replace(route.era) != Some(route.era) {
            for place in &mut routes.places {
                place.take_if(|route| route.peer.control.is_closed());
            }
        }
        let place = address.place();
        if let Some(place) = routes.places.get_mut(place) {
            *place = Some(route);
        }
    });
}
