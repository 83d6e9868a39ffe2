# SPDX-License-Identifier: GPL-2.0
#
# Joins the TAP of many programs into one, with the totals on the last line, and
# what failed, with its last words, before that: the first places to look at.
# Between the programs' lines it expects:
#   @run LABEL	what follows runs there
#   @program NAME	what follows is a program's output
#   @exit STATUS	end of the program's output
#   @end STATUS	end of the run
#   @again	the run comes once more: what it has shown does not count

function result(ok, text,	i)
{
	printf "%s %d %s\n", ok ? "ok" : "not ok", ++total, text
	if (ok) {
		passed++
	} else {
		failed++
		repeat = repeat "# " text "\n"
		for (i = nsaid > 60 ? nsaid - 60 : 0; i < nsaid; i++)
			repeat = repeat "#   " said[i % 60] "\n"
	}
	nsaid = 0
	fflush()
}

# A line that belongs to no test yet; the next result makes it one's last words.
function say(line)
{
	print "# " line
	said[nsaid++ % 60] = line
	fflush()
}

# A program that stops early must not look better for it.
function program_end(status)
{
	while (seen < plan)
		result(0, label ": " program ": test " ++seen " did not run")
	if (!seen || (status && status != 4 && !bad))
		result(0, label ": " program ": exit status " status)
	program = ""
}

# What there was before this run
function keep()
{
	was_total = total
	was_passed = passed
	was_failed = failed
	was_skipped = skipped
	was_repeat = repeat
	program = ""
}

# Back to that
function rewind()
{
	total = was_total
	passed = was_passed
	failed = was_failed
	skipped = was_skipped
	repeat = was_repeat
	program = ""
	nsaid = 0
}

BEGIN { print "TAP version 13" }
{ sub(/\r$/, "") }
/^@run / { label = substr($0, 6); keep(); next }
/^@again/ {
	rewind()
	print "# " label ": the emulator failed: once more, from " total + 1
	next
}
/^@program / { nsaid = 0; program = $2; plan = seen = bad = 0; next }
/^@exit / { program_end($2); next }
/^@end / {
	if (program != "")
		program_end("unknown")
	result($2 == 0, label ": guest and its kernel are well")
	next
}
/^TAP version / { next }
/^1\.\.[0-9]+/ { plan = substr($1, 4) + 0; next }
/^ok / && /# SKIP/ {
	seen++
	skipped++
	nsaid = 0
	sub(/^ok [0-9]+ /, "")
	print "ok " ++total " " label ": " program ": " $0
	next
}
/^(not )?ok / {
	ok = /^ok /
	seen++
	bad += !ok
	sub(/^(not )?ok [0-9]+ /, "")
	result(ok, label ": " program ": " $0)
	next
}
{ say($0) }

END {
	print "1.." total
	if (skipped)
		print "# " skipped " skipped"
	if (failed)
		printf "# What failed:\n%s", repeat
	printf "%d passed, %d failed\n", passed, failed
	exit failed || !passed
}
