"""Programs on the libraries people use, run on the loop: each checks the bytes, the cancellations and the close."""
