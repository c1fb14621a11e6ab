//! Measurements, and what is said of many of them.

use serde::Serialize;

/// One value per round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Series(pub Vec<f64>);

impl Series {
    /// The value in the middle; not a number if there is none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.as_slice() {
            [] => f64::NAN,
            all if all.len() % 2 == 1 => all[middle],
            all => f64::midpoint(all[middle - 1], all[middle]),
        }
    }

    /// The smallest value.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest value.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Round by round, this over `other`.
    #[must_use]
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, base)| one / base).collect())
    }
}

/// One row of a table at one size.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// What was around the handler.
    pub subject: &'static str,
    /// What happened to each request.
    pub row: &'static str,
    /// The size of the request's body.
    pub bytes: usize,
    /// The values, one per round.
    pub values: Series,
    /// The same as a multiple of the bare handler in the same round.
    pub ratios: Series,
}

/// Fills in the ratios: each round over the bare handler of that round, at the same size.
pub fn relate_to_bare(measured: &mut [Measurement]) {
    let bare: Vec<(usize, Series)> =
        measured.iter().filter(|one| one.row == "bare").map(|one| (one.bytes, one.values.clone())).collect();
    for one in measured {
        if let Some((_, base)) = bare.iter().find(|(bytes, _)| *bytes == one.bytes) {
            one.ratios = one.values.over(base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Series;

    #[test]
    fn the_median_of_rounds() {
        assert!((Series(vec![3.0, 1.0, 2.0]).median() - 2.0).abs() < 1e-9);
        assert!((Series(vec![4.0, 1.0, 2.0, 3.0]).median() - 2.5).abs() < 1e-9);
        assert!(Series::default().median().is_nan());
    }
}
