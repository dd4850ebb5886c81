"""From a trained run to samples: settings, starts, chains, the judge of them, and the files they end in."""
