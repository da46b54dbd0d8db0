"""``NNNN_pre_what`` runs before the new code, ``NNNN_post_what`` after it."""
