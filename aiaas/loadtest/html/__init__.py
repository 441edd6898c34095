"""Write a load test's runs as one HTML page: markup, drawing, the data of the charts, and the page itself."""
