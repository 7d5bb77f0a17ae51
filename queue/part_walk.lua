-- Going through a sorted set in steps, while members come and go.

-- The rank of the first member behind (score, member), whether that one is still there or not.
local function rank_after(key, score, member)
    local stands = redis.call('ZSCORE', key, member)
    if stands and tonumber(stands) == tonumber(score) then
        return redis.call('ZRANK', key, member) + 1
    end
    local low = redis.call('ZCOUNT', key, '-inf', '(' .. score)
    local high = redis.call('ZCOUNT', key, '-inf', score)
    while low < high do
        local middle = math.floor((low + high) / 2)
        if redis.call('ZRANGE', key, middle, middle)[1] <= member then
            low = middle + 1
        else
            high = middle
        end
    end
    return low
end

-- Batches, *KiB of a large body, charge; nil without a record. Version 0.1 stored no charge: it counted the body, a
-- string without a frame, and the same sums beyond it as queue_charge().
local function message_head(id)
    local text = redis.call('GETRANGE', tag .. ':m:' .. id, 0, 60)
    local count, suffix, charge = string.match(text, '^(%d+)(%**%d*) ?(%d*)\n')
    if charge == '' then
        charge = redis.call('STRLEN', tag .. ':b:' .. id) + 1024 + 512 * count
    end
    return tonumber(count), suffix, tonumber(charge) or 0
end
