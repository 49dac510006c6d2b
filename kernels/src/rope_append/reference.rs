//! The maths of rotary embedding, in f64.

/// One head at one position: `table` is `rotary / 2` cosines, then as many sines.
pub fn rope(x: &[f32], table: &[f32]) -> Vec<f32> {
    let half = table.len() / 2;
    let mut y = x.to_vec();
    for i in 0..half {
        let (c, s) = (f64::from(table[i]), f64::from(table[half + i]));
        let (a, b) = (f64::from(x[i]), f64::from(x[half + i]));
        y[i] = (a * c - b * s) as f32;
        y[half + i] = (b * c + a * s) as f32;
    }
    y
}
