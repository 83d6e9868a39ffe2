# SPDX-License-Identifier: GPL-2.0
#
# The results of the programs ("@ KEY VALUE") as tables in Markdown.
#
# Of rates, the fastest round; of times, the median of single runs: the host
# disturbs them.  Of instructions, the mean of the quietest round, so that work
# done once for many pages counts; but the least of single runs where kernels
# are compared.

{ results[$2] = $3 }

function value(key)
{
	if (!(key in results)) {
		print "bench: no result for " key >"/dev/stderr"
		missing = 1
		return 1
	}
	return results[key]
}

function ratio(a, b)
{
	return b ? sprintf("%.2f", a / b) : "-"
}

function head(title, columns,	names, n, i, rule)
{
	printf "%s### %s\n\n|", title == first ? "" : "\n", title
	n = split(columns, names, ",")
	for (i = 1; i <= n; i++) {
		printf " %s |", names[i]
		rule = rule (i == 1 ? "---|" : "---:|")
	}
	printf "\n|%s\n", rule
}

function rate(text, key)
{
	printf "| %s | %d | %s | %s | %d |\n", text,
		value("time." key) / 1000,
		ratio(value("time." key), value("time.ksm")),
		ratio(100 * value("time." key), bound),
		# one instruction per nanosecond
		1e9 / value("count." key)
}

function cost(text, name, ordinary,	us, us_merged, insns, insns_merged)
{
	ordinary = ordinary ? ordinary : name
	us = value("time." ordinary ".plain_each") / 1000
	us_merged = value("time." name ".merged_each") / 1000
	insns = value("count." ordinary ".plain")
	insns_merged = value("count." name ".merged")
	printf "| %s | %.1f | %.1f | %s | %d | %d | %s |\n", text,
		us, us_merged, ratio(us_merged, us),
		insns, insns_merged, ratio(insns_merged, insns)
}

function large(text, name,	insns, insns_merged)
{
	insns = value("xfs." name ".plain")
	insns_merged = value("xfs." name ".merged")
	printf "| %s | %d | %d | %s |\n", text, insns, insns_merged,
		ratio(insns_merged, insns)
}

function overhead(text, name,	off, in_, loaded)
{
	off = value("off." name ".plain_each")
	in_ = value("in." name ".plain_each")
	loaded = value("loaded." name ".plain_each")
	printf "| %s | %d | %d | %+d | %d | %+d |\n", text, off, in_, in_ - off,
		loaded, loaded - off
}

function aliases(nr)
{
	printf "| %d | %.1f | %d | %s |\n", nr,
		value("time.aliases_" nr ".merged_each") / 1000,
		value("count.aliases_" nr ".merged"),
		ratio(value("count.aliases_" nr ".merged"),
		      value("count.aliases_2.merged"))
}

# From read to merged: see fresh.c
function fresh(text, key)
{
	printf "| %s | %.1f | %.1f | %.1f | %.1f |\n", text,
		value(key ".p50"), value(key ".p90"), value(key ".p99"),
		value(key ".max")
}

# What a write costs where a guess was right, and where it was not
function guess(text, name, mode, label,	key)
{
	key = "guess." mode "." name
	printf "| %s | %s | %.1f | %.1f | %.2f | %d | %d | %.2f |\n", text,
		label, value("time." key ".right") / 1000,
		value("time." key ".wrong") / 1000, value("time." key ".told"),
		value("count." key ".right"), value("count." key ".wrong"),
		value("count." key ".told")
}

# What a policy gains while files are written: see mix.c.  Of some runs the first
# is shown, and what is left of the others.
function mix(text, kind, policy,	run, key, saved, paid, others)
{
	for (run = 0; ("mix." kind "." policy "." run ".scan") in results; run++) {
		key = "mix." kind "." policy "." run
		saved = value(key ".page_seconds")
		paid = value(key ".write") + value(key ".scan") - \
		       value("mix." kind ".none." run ".write")
		if (run) {
			others = others sprintf(" %+d", net(saved, paid))
			continue
		}
		gain[kind policy] = saved
		loss[kind policy] = paid
	}
	key = "mix." kind "." policy ".0"
	saved = gain[kind policy]
	paid = loss[kind policy]
	printf "| %s | `%s` | %d | %d | %d | %d | %+d |%s |\n", text, policy,
		saved, value(key ".breaks"), value(key ".scan") / 1e6,
		paid / 1e6, net(saved, paid), others
}

function net(saved, paid)
{
	return saved - paid / value("mix.price")
}

# The price from which on the one that saves more is the better one
function break_even(kind, more, less,	gained, lost)
{
	gained = gain[kind more] - gain[kind less]
	lost = loss[kind more] - loss[kind less]
	printf "\nA page-second counts %d instructions, as measured; ",
		value("mix.price")
	if (gained > 0 && lost > 0)
		printf "where it is busy, `%s` has the\nbetter net below %d.\n",
			less, lost / gained
	else
		printf "which is better\nwhere it is busy does not depend on it.\n"
}

END {
	first = "Pages merged"
	# One comparison of all bytes, as fast as memory and processor allow
	bound = value("time.compare")
	head(first, "how,1000/s,x ksmd,% of memcmp,insns/page")
	rate("ksmd, anonymous memory", "ksm")
	rate("policy `all` (hashes, merges)", "all")
	rate("policy `samefile` (merges)", "samefile")
	rate("verb merge, 256 pages a call", "verb")
	rate("verb hash, 256 pages a call", "verb_hash")
	rate("bound: memcmp(3) of both pages", "compare")
	rate("bound: XXH64() of both pages", "hash_twice")

	head("One operation on ordinary and on merged pages", \
	     "operation,us,merged,ratio,insns,merged,ratio")
	cost("pread(2), 4 KiB", "pread_4k")
	cost("pread(2), 128 KiB", "pread_128k")
	cost("read fault, one page", "read_fault")
	cost("read fault, 16 pages", "read_fault_around")
	cost("first store, nothing mapped", "store_absent")
	cost("first store, mapped to read", "store_readonly")
	cost("the same, last alias of its root", "last_alias", "store_absent")
	cost("pwrite(2), 1 byte", "pwrite_byte")
	cost("pwrite(2), 4 KiB", "pwrite_4k")
	cost("KSM: first store, anonymous", "anon_store")

	head("First store, by aliases of the root", "aliases,us,insns,ratio")
	aliases(2)
	aliases(16)
	aliases(256)

	head("xfs: ordinary pages in large folios; instructions", \
	     "operation,ordinary,merged,ratio")
	large("pread(2), 4 KiB", "pread_4k")
	large("pread(2), 128 KiB", "pread_128k")
	large("read fault, one page", "read_fault")
	large("read fault, 16 pages", "read_fault_around")
	large("first store, nothing mapped", "store_absent")
	large("first store, mapped to read", "store_readonly")
	large("pwrite(2), 4 KiB", "pwrite_4k")

	head("Instructions on ordinary pages, by kernel", \
	     "operation,feature out,in,more,loaded,more")
	overhead("pread(2), 4 KiB", "pread_4k")
	overhead("pread(2), 128 KiB", "pread_128k")
	overhead("read fault, one page", "read_fault")
	overhead("read fault, 16 pages", "read_fault_around")
	overhead("first store, nothing mapped", "store_absent")
	overhead("first store, mapped to read", "store_readonly")
	overhead("pwrite(2), 1 byte", "pwrite_byte")
	overhead("pwrite(2), 4 KiB", "pwrite_4k")

	head("From read to merged", "policy,p50 ms,p90 ms,p99 ms,max ms")
	n = split("time count", guests, " ")
	split("two processors,one processor", processors, ",")
	for (i = 1; i <= n; i++) {
		fresh("`all`, " processors[i], guests[i] ".fresh_all")
		fresh("`samefile`, " processors[i], guests[i] ".fresh_samefile")
		fresh("`all`, strict, " processors[i], \
		      guests[i] ".fresh_all_strict")
		fresh("`samefile`, strict, " processors[i], \
		      guests[i] ".fresh_samefile_strict")
	}

	head("What a writer can tell", \
	     "first write to a page,mode,us if shared,us if not,told,insns if shared,insns if not,told")
	n = split("off,unequal,default,strict", modes, ",")
	split("nobody looks,strict; none is shared,default,strict", labels, ",")
	for (i = 1; i <= n; i++) {
		guess("write(2), 1 byte", "pwrite_byte", modes[i], labels[i])
		guess("store, nothing mapped", "store_absent", modes[i], \
		      labels[i])
		guess("store, mapped to read", "store_readonly", modes[i], \
		      labels[i])
	}
	printf "\nA coin would be within 0.50 +- %.2f in 95 of 100 rows.\n",
		value("time.guess.chance")

	head("While files are written", \
	     "each file,policy,page-seconds,breaks,M insns of ksm_extd,M insns in all,net page-seconds,of other runs")
	print "| | none | 0 | 0 | 0 | 0 | 0 | |"
	mix("twice a second", "busy", "all")
	mix("twice a second", "busy", "adaptive")
	mix("once in 10 s", "calm", "all")
	mix("once in 10 s", "calm", "adaptive")
	break_even("busy", "all", "adaptive")

	head("Metadata", "what,bytes")
	printf "| alias (`struct ksm_ext_alias`) | %d |\n", value("size.alias")
	printf "| root (`struct ksm_ext_root`) | %d |\n", value("size.root")
	printf "| file with an id (`struct ksm_ext_file`) | %d |\n",
		value("size.file")
	printf "| page saved, two aliases per root: growth of slab | %.0f |\n",
		value("time.slab")
	printf "| the same by KSM | %.0f |\n", value("time.ksm_slab")
	exit missing
}
