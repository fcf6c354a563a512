"""Pictures and clips that come with requests: received into files, checked, stored."""
