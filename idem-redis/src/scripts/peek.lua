-- Returns the claim or the head of the record, and how many milliseconds are left to its key.
return { look(), redis.call('PTTL', KEYS[1]) }
