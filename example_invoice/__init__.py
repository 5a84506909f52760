"""The proof of celery_notify: invoices gathered from three services, watched in a browser meanwhile."""
