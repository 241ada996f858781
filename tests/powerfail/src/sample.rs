// SPDX-License-Identifier: GPL-2.0

//! Which instants of a run become crash points.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A generator that gives the same numbers for the same seed everywhere.
pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// A number below `limit`, which is not 0.
pub fn below(rng: &mut ChaCha8Rng, limit: u64) -> u64 {
    // The bias of 2^-32 or less does not matter here.
    ((rng.next_u64() as u128 * limit as u128) >> 64) as u64
}

/// Draws `size` of the offered instants, each with the same chance, without
/// knowing how many will come (Vitter's algorithm R).
#[derive(Debug)]
pub struct Reservoir {
    size: usize,
    seen: u64,
    rng: ChaCha8Rng,
}

impl Reservoir {
    /// Draws with `seed`.
    pub fn new(size: usize, seed: u64) -> Self {
        Reservoir {
            size,
            seen: 0,
            rng: rng(seed),
        }
    }

    /// Offers the next instant. `Some(slot)`: take it, in place of the one in `slot`.
    pub fn offer(&mut self) -> Option<usize> {
        self.seen += 1;
        if self.seen <= self.size as u64 {
            return Some(self.seen as usize - 1);
        }
        if self.size == 0 {
            return None;
        }
        let slot = below(&mut self.rng, self.seen) as usize;
        (slot < self.size).then_some(slot)
    }

    /// How many were offered.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instant_has_the_same_chance() {
        let mut taken = [0u32; 100];
        for seed in 0..2000 {
            let mut reservoir = Reservoir::new(10, seed);
            let mut slots = [usize::MAX; 10];
            for i in 0..100 {
                if let Some(slot) = reservoir.offer() {
                    slots[slot] = i;
                }
            }
            assert_eq!(reservoir.seen(), 100);
            slots.iter().for_each(|&i| taken[i] += 1);
        }
        // 200 expected each, standard deviation 13.4.
        assert!(taken.iter().all(|&n| (133..267).contains(&n)), "{taken:?}");
    }

    #[test]
    fn fewer_instants_than_slots_are_all_taken() {
        let mut reservoir = Reservoir::new(10, 1);
        assert_eq!(
            (0..5).map(|_| reservoir.offer()).collect::<Vec<_>>(),
            (0..5).map(Some).collect::<Vec<_>>()
        );
        assert_eq!(Reservoir::new(0, 1).offer(), None);
    }

    #[test]
    fn the_generator_is_the_same_everywhere() {
        let mut r = rng(42);
        assert_eq!(
            (below(&mut r, 1000), below(&mut r, 1000)),
            (below(&mut rng(42), 1000), {
                let mut r = rng(42);
                below(&mut r, 1000);
                below(&mut r, 1000)
            })
        );
    }
}
