#!lua
-- Write a state into the namespace KEYS[1], as read_state gave it; whatever is there goes.
local root = KEYS[1]
for _, key in ipairs(redis.call('KEYS', root .. '*')) do redis.call('DEL', key) end
local turns = 0
for _, item in ipairs(cjson.decode(ARGV[1])) do
  local key, kind = root .. item[1], item[2]
  if kind == 'string' then
    redis.call('SET', key, item[3])
  elseif kind == 'set' then
    for at = 3, #item do redis.call('SADD', key, item[at]) end
  else
    for at = 3, #item, 2 do
      if kind == 'hash' then
        redis.call('HSET', key, item[at], item[at + 1])
      else
        redis.call('ZADD', key, item[at + 1] == 'later' and 9000000000000 or item[at + 1], item[at])
      end
    end
    if kind == 'zset' and string.match(item[1], '^line:') then turns = turns + (#item - 2) / 2 end
  end
end
if turns > 0 then redis.call('SET', root .. 'turn', turns) end
return 'loaded'
