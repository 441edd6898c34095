"""A load test's runs as one HTML page: markup, charts, what the charts show, and their order on the page."""
