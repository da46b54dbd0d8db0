#!lua
-- Read the namespace KEYS[1] as JSON, made canonical: a time is 'later' or '0', a turn its rank, keys and
-- members are sorted, beats, rings and nonces are nothing.  Each item is {key, type, value or members ...}.
local root = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function when(score) return tonumber(score) > now and 'later' or '0' end
local function pairs_of(flat)
  local names, values = {}, {}
  for at = 1, #flat, 2 do
    names[#names + 1] = flat[at]
    values[flat[at]] = flat[at + 1]
  end
  table.sort(names)
  return names, values
end
local answer, turns = {}, {}
local keys = redis.call('KEYS', root .. '*')
table.sort(keys)
for _, key in ipairs(keys) do
  local name, kind = string.sub(key, #root + 1), redis.call('TYPE', key).ok
  local item = { name, kind }
  if kind == 'string' then
    item[3] = redis.call('GET', key)
  elseif kind == 'set' then
    local members = redis.call('SMEMBERS', key)
    table.sort(members)
    for _, member in ipairs(members) do item[#item + 1] = member end
  elseif kind == 'hash' then
    local names, values = pairs_of(redis.call('HGETALL', key))
    for _, field in ipairs(names) do
      local value = values[field]
      if string.match(name, '^run:') then
        if field == 'not_before' then value = when(value) == 'later' and '9000000000000' or '0' end
        if field == 'beat' or field == 'rings' then value = '0' end
        if field == 'nonce' then value = '' end
      elseif name == 'capacity' then
        local total, ends = string.match(value, '^(.*) (%d+)$')
        value = total .. (when(ends) == 'later' and ' 9000000000000' or ' 0')
      end
      item[#item + 1] = field
      item[#item + 1] = value
    end
  else
    local names, values = pairs_of(redis.call('ZRANGE', key, 0, -1, 'WITHSCORES'))
    for _, member in ipairs(names) do
      item[#item + 1] = member
      item[#item + 1] = values[member]
      if name == 'leases' then item[#item] = '0' end
      if not string.match(name, '^open:') and not string.match(name, '^line:') and name ~= 'leases' then
        item[#item] = when(values[member])
      end
      if string.match(name, '^line:') then turns[#turns + 1] = { tonumber(values[member]), item, #item } end
    end
  end
  if name ~= 'turn' then answer[#answer + 1] = item end
end
table.sort(turns, function(one, other) return one[1] < other[1] end)
for rank, turn in ipairs(turns) do turn[2][turn[3]] = tostring(rank) end
return cjson.encode(answer)
