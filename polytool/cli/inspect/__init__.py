"""Look into models, engines and saved data."""
