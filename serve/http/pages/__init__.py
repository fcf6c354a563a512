"""The web page and the page of the API's description."""
