-- Returns the value, how many milliseconds are left to its key, and the time.
return { redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('TIME') }
