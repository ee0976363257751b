//! The table of service addresses: cuckoo hashing with two entries a bucket (Pagh and Rodler, Journal of Algorithms 51(2),
//! 2004).

use std::collections::BTreeMap;

use fib::layout::SERVICE_BUCKET_ENTRIES;
use fib::service::{Address, address_hash};

/// An entry: address, word, zero.
pub(super) type Entry = [u64; 4];

const WIDTH: usize = SERVICE_BUCKET_ENTRIES as usize;
/// Entries that may be moved to make room for one; then the table is doubled.
const KICKS_MAX: usize = 500;

/// Places every address; the table is empty where there is none.
pub(super) fn place(addresses: &BTreeMap<Address, u64>) -> Vec<Entry> {
    if addresses.is_empty() {
        return Vec::new();
    }
    // At most 80 % full: above 90 % two entries a bucket have no solution.
    let mut buckets = (addresses.len() * 5).div_ceil(8).next_power_of_two();
    loop {
        if let Some(table) = try_place(addresses, buckets) {
            return table;
        }
        buckets *= 2;
    }
}

fn try_place(addresses: &BTreeMap<Address, u64>, buckets: usize) -> Option<Vec<Entry>> {
    let mut table = vec![[0; 4]; buckets * WIDTH];
    for (address, word) in addresses {
        let mut entry = [address[0], address[1], *word, 0];
        let mut bucket = homes([entry[0], entry[1]], buckets)[0];
        let mut kicks = 0;
        loop {
            let free = homes([entry[0], entry[1]], buckets)
                .into_iter()
                .flat_map(|home| home * WIDTH..(home + 1) * WIDTH)
                .find(|at| table[*at][2] == 0);
            if let Some(at) = free {
                table[at] = entry;
                break;
            }
            if kicks == KICKS_MAX {
                return None;
            }
            // Whoever is moved goes on to its other home.
            std::mem::swap(&mut entry, &mut table[bucket * WIDTH + kicks % WIDTH]);
            let [first, second] = homes([entry[0], entry[1]], buckets);
            bucket = if bucket == first { second } else { first };
            kicks += 1;
        }
    }
    Some(table)
}

#[expect(clippy::cast_possible_truncation, reason = "each half of the hash names a bucket")]
fn homes(address: Address, buckets: usize) -> [usize; 2] {
    let hash = address_hash(address);
    [hash as u32 as usize & (buckets - 1), (hash >> 32) as usize & (buckets - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_in_one_of_its_two_buckets() {
        for count in [1u64, 2, 3, 5, 100, 1_000, 50_000] {
            let addresses: BTreeMap<Address, u64> =
                (0..count).map(|i| ([0, 0xffff << 32 | 0x0a01_0000 | i], i + 1)).collect();
            let table = place(&addresses);
            assert!(table.len() <= addresses.len() * 4 + 2, "{count}: {}", table.len());
            for (address, word) in &addresses {
                let found = homes(*address, table.len() / WIDTH)
                    .into_iter()
                    .flat_map(|home| &table[home * WIDTH..][..WIDTH])
                    .any(|entry| entry[..3] == [address[0], address[1], *word]);
                assert!(found, "{count}: {address:x?}");
            }
        }
    }
}
