//! Weights in the order of the A fragments of `mma.m16n8k16` (PTX manual, "Matrix Fragments for mma.m16n8k16"), so that
//! a lane's share of a 16 x 16 tile is one 16-byte load and a warp's is 512 bytes in a row.

use crate::error::{KernelError, at_least};

/// Rows and columns of a tile.
pub const TILE: usize = 16;
/// Bytes of a tile of 2-byte elements.
pub const TILE_BYTES: usize = TILE * TILE * 2;

/// Bytes of 16 packed rows of `k` elements.
pub const fn tile_row_bytes(k: usize) -> usize {
    k.div_ceil(TILE) * TILE_BYTES
}

/// Element index of (`row` below 16, `col`) in a packed row of tiles.
pub const fn index(row: usize, col: usize) -> usize {
    let (g, q, c) = (row % 8, col % 8 / 2, col % TILE);
    let register = row / 8 + 2 * (c / 8);
    col / TILE * (TILE * TILE) + (4 * g + q) * 8 + register * 2 + c % 2
}

/// Packs up to 16 rows of `k` 2-byte elements; rows and columns that are not there become zero.
///
/// # Errors
/// `Shape` for more than 16 rows, short rows or a short destination.
pub fn pack_tile_row(rows: &[&[u8]], k: usize, out: &mut [u8]) -> Result<(), KernelError> {
    const NAME: &str = "mma16";
    at_least(NAME, "rows of a tile", rows.len(), TILE)?;
    at_least(NAME, "bytes of a row of tiles", tile_row_bytes(k), out.len())?;
    out[..tile_row_bytes(k)].fill(0);
    for (r, row) in rows.iter().enumerate() {
        at_least(NAME, "bytes of a row", 2 * k, row.len())?;
        for (col, element) in row[..2 * k].chunks_exact(2).enumerate() {
            out[2 * index(r, col)..][..2].copy_from_slice(element);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_those_of_the_manual() {
        // a0..a7 of lane (groupID 5, threadID_in_group 2): rows g, g, g+8, g+8, then the same 8 columns on.
        let want = [(5, 4), (5, 5), (13, 4), (13, 5), (5, 12), (5, 13), (13, 12), (13, 13)];
        let lane = 4 * 5 + 2;
        for (i, (row, col)) in want.into_iter().enumerate() {
            assert_eq!(index(row, col), lane * 8 + i);
            assert_eq!(index(row, col + 32), 512 + lane * 8 + i);
        }
    }

    #[test]
    fn every_element_has_its_own_place_and_padding_is_zero() {
        let (n, k) = (9, 19);
        let data: Vec<Vec<u8>> =
            (0..n).map(|r| (0..k).flat_map(|c| ((r * k + c + 1) as u16).to_le_bytes()).collect()).collect();
        let rows: Vec<&[u8]> = data.iter().map(|r| &r[..]).collect();
        let mut out = vec![0xff; tile_row_bytes(k)];
        pack_tile_row(&rows, k, &mut out).unwrap();
        let mut seen: Vec<u16> = out.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        for r in 0..n {
            for c in 0..k {
                assert_eq!(std::mem::take(&mut seen[index(r, c)]), (r * k + c + 1) as u16);
            }
        }
        assert!(seen.iter().all(|e| *e == 0));
        assert!(pack_tile_row(&rows, 20, &mut out).is_err());
        assert!(pack_tile_row(&[&[][..]; 17], 0, &mut out).is_err());
        assert!(pack_tile_row(&rows, k, &mut [0; 4]).is_err());
    }
}
