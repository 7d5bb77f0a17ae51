-- What admission looks at each second. KEYS: shard tag. Reply: {bytes, open messages}.
local tag = KEYS[1]
return {tonumber(redis.call('HGET', tag .. ':k', 'bytes') or 0), redis.call('ZCARD', tag .. ':x')}
