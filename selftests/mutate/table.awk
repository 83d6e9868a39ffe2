# SPDX-License-Identifier: GPL-2.0
#
# usage: awk -f table.awk MUTATION.patch... coherence.md
#
# Do the tables of docs/coherence.md fit the mutations?  In a row that names some,
# each has to expect one of the row's tests, and each test of it has to be
# expected by one of these.  Prints what does not fit.
#
# A cell of tests reads "`PROGRAM`: `TEST`, `TEST`; `PROGRAM`: `TEST`", that of
# mutations "`NAME`, `NAME`"; TEST and NAME may be patterns with "*".

function wrong(text)
{
	print FILENAME ":" FNR ": " text
	bad = 1
}

# words CELL, OUT: what stands in backquotes; "P:" where a colon follows
function words(cell, out,	n)
{
	while (match(cell, /`[^`]*`:?/)) {
		out[++n] = substr(cell, RSTART, RLENGTH)
		gsub(/`/, "", out[n])
		cell = substr(cell, RSTART + RLENGTH)
	}
	return n
}

function expression(pattern)
{
	gsub(/\./, "\\.", pattern)
	gsub(/\*/, ".*", pattern)
	return pattern
}

# A test is PROGRAM.FIXTURE.TEST, or PROGRAM.FIXTURE.VARIANT.TEST.
function is_test(test, program, name)
{
	name = expression(name)
	return test ~ "^" program "\\.(.*\\.)?" name "(\\..*)?$"
}

function row(tests, mutations,	i, j, k, n, m, t, w, program, some, seen, found)
{
	m = words(mutations, w)
	n = words(tests, t)
	for (i = 1; i <= m; i++) {
		found = 0
		for (k in expects) {
			if (k !~ "^" expression(w[i]) "$")
				continue
			found = some = 1
			seen[k] = 0
		}
		if (!found)
			wrong("no mutation " w[i])
	}
	if (!some)
		return
	for (i = 1; i <= n; i++) {
		if (t[i] ~ /:$/) {
			program = substr(t[i], 1, length(t[i]) - 1)
			continue
		}
		found = 0
		for (k in seen) {
			m = split(expects[k], w, " ")
			for (j = 1; j <= m; j++) {
				if (is_test(w[j], program, t[i]))
					found = seen[k] = 1
			}
		}
		if (!found)
			wrong("no mutation of the row expects " program ": " t[i])
	}
	for (k in seen) {
		if (!seen[k])
			wrong(k " expects no test of the row")
	}
}

FNR == 1 {
	name = FILENAME
	sub(/.*\//, "", name)
	sub(/\.patch$/, "", name)
	header = FILENAME ~ /\.patch$/
}
FILENAME ~ /\.patch$/ {
	header = header && $0 != "---"
	if (header && $1 == "Expect:")
		expects[name] = expects[name] " " substr($0, 9)
	next
}
!/^\|/ { in_table = 0; next }
!in_table {
	in_table = 1
	split("", column)
	n = split($0, cell, / *\| */)
	for (i = 1; i <= n; i++)
		column[cell[i]] = i
	next
}
"mutation" in column && "test" in column && !/^\|-/ {
	split($0, cell, / *\| */)
	if (cell[column["mutation"]] !~ /^none/)
		row(cell[column["test"]], cell[column["mutation"]])
}
END { exit bad }
