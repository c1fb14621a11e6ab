-- What stands under the key, how many milliseconds are left to it, and the time.
return { redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('TIME') }
