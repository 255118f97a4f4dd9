"""Files: `reading` and `yaml` refuse what is none, `writing` leaves them whole or absent, `places` knows ours."""
