"""The quality page of a cohort: what a site should look at before it trains, for its own eyes only."""
