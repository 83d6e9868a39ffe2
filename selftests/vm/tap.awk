# SPDX-License-Identifier: GPL-2.0
#
# Joins the TAP of many programs into one, with the totals on the last line.
# Between the programs' lines it expects:
#   @run LABEL	what follows runs there
#   @program NAME	what follows is a program's output
#   @exit STATUS	end of the program's output
#   @end STATUS	end of the run

function result(ok, text)
{
	printf "%s %d %s\n", ok ? "ok" : "not ok", ++total, text
	if (ok)
		passed++
	else
		failed++
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

BEGIN { print "TAP version 13" }
{ sub(/\r$/, "") }
/^@run / { label = substr($0, 6); program = ""; next }
/^@program / { program = $2; plan = seen = bad = 0; next }
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
{ print "# " $0; fflush() }

END {
	print "1.." total
	if (skipped)
		print "# " skipped " skipped"
	printf "%d passed, %d failed\n", passed, failed
	exit failed || !passed
}
